// Prints the rotary angles of a configuration, for rope_reference.py:
//   rope_angles HEAD_DIM TOKENS KEY=VALUE...      metadata as a safetensors cache has it
// Lines: "attention FACTOR", "angle RADIANS_PER_POSITION" for each pair, "sincos COS SIN" for each
// pair at the last of TOKENS.
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "client/src/layout_metadata.h"
#include "core/layout/rope.h"

int main(int argc, char** argv) {
  using namespace latticekv;
  if (argc < 3) return 2;
  const uint32_t head_dim = static_cast<uint32_t>(std::atoi(argv[1]));
  const uint32_t tokens = static_cast<uint32_t>(std::atoi(argv[2]));
  SafetensorsMetadata metadata;
  for (int i = 3; i < argc; ++i) {
    const std::string word = argv[i];
    const size_t equals = word.find('=');
    metadata[word.substr(0, equals)] = word.substr(equals + 1);
  }
  Layout layout = MakeUniformLayout("reference", 1, 1, head_dim, DType::kF16, RopeSpec{});
  std::vector<std::string> notices;
  absl::Status status = ReadRopeMetadata(metadata, tokens, layout, notices);
  if (status.ok()) status = ValidateLayout(layout);
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
    return 1;
  }
  const RopeSpec& rope = layout.layers[0].planes[0].rope;
  std::printf("attention %.17g\n", RopeAttentionFactor(rope));
  for (uint64_t f : RopeFrequencies(rope)) {
    std::printf("angle %.17g\n", std::ldexp(static_cast<double>(f), -64) * kTwoPi);
  }
  for (const SinCos& r : RopeTable(rope, tokens - 1, 1)) {
    std::printf("sincos %.9g %.9g\n", double{r.cos}, double{r.sin});
  }
  return 0;
}
