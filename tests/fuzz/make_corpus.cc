// Writes the seed inputs of decoder_fuzz: make_fuzz_corpus FOLDER. One of each kind of frame,
// layout and profile; run again when the format gains a stage.
#include <cstdio>
#include <fstream>
#include <string>

#include "core/codec/codec.h"
#include "tests/fuzz/subjects.h"

namespace latticekv::testing {
namespace {

void Write(const std::string& path, uint8_t head, ByteSpan bytes) {
  std::ofstream out(path, std::ios::binary);
  out.put(static_cast<char>(head));
  out << AsText(bytes);
}

int Main(const std::string& folder) {
  for (size_t s = 0; s < FuzzSubjects().size(); ++s) {
    const FuzzSubject& subject = FuzzSubjects()[s];
    const auto head = [&](FuzzInput kind, uint8_t flags) {
      return static_cast<uint8_t>(static_cast<uint8_t>(kind) | flags | s << kFuzzSubjectShift);
    };
    const std::string at = folder + "/" + subject.layout.model + "_";
    for (const Preset& preset : AllPresets()) {
      for (StatsMode stats : {StatsMode::kOwn, StatsMode::kProfile}) {
        if (preset.id == PresetId::kExact && stats == StatsMode::kProfile) continue;
        // Few presets differ in more than numbers.
        if (preset.id == PresetId::kFine || preset.id == PresetId::kSmall) continue;
        const SampleChunk chunk = MakeSampleChunk(subject.layout, 9, 4);
        EncodeOptions options;
        options.preset = preset.id;
        options.stats = stats;
        options.profile = &subject.profile;
        options.start_position = stats == StatsMode::kOwn ? 0 : 512;
        const auto frame = EncodeFrame(subject.layout, 9, chunk.views(), options);
        if (!frame.ok()) return 1;
        Write(at + std::string(preset.name) + (stats == StatsMode::kOwn ? "_own" : "_profile"),
              head(FuzzInput::kFrame, stats == StatsMode::kOwn ? kFuzzReseal : 0), *frame);
      }
    }
    for (const bool groups : {false, true}) {
      const SampleChunk chunk = MakeSampleChunk(subject.layout, 9, 4);
      EncodeOptions options;
      options.preset = PresetId::kSeed;
      options.seed = {3, 2, groups, !groups};
      options.exact_tokens = {5};
      const auto frame = EncodeFrame(subject.layout, 9, chunk.views(), options);
      if (!frame.ok()) return 1;
      Write(at + (groups ? "seed_groups" : "seed"), head(FuzzInput::kFrame, kFuzzReseal), *frame);
    }
    Write(at + "layout", head(FuzzInput::kLayout, 0), SerializeLayout(subject.layout));
    Write(at + "profile", head(FuzzInput::kProfile, 0), SerializeProfile(subject.profile));
  }
  return 0;
}

}  // namespace
}  // namespace latticekv::testing

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "make_fuzz_corpus FOLDER\n");
    return 2;
  }
  return latticekv::testing::Main(argv[1]);
}
