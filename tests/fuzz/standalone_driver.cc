// Stands in for libFuzzer where the compiler has none: replays the corpus, every prefix of it in
// steps, then mutants of it for LATTICEKV_FUZZ_SECONDS of CPU time (5). LATTICEKV_SEED sets the
// seed.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

#include "tests/support/mutation.h"
#include "tests/support/sample_chunk.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace latticekv::testing {
namespace {

using Input = std::vector<uint8_t>;

// Copied to memory of just its size, so that a sanitizer sees reads beyond it.
void Run(const Input& input) {
  const Input exact(input.begin(), input.end());
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

void Mutate(Random& random, const std::vector<Input>& corpus, Input& input) {
  for (uint32_t i = 0, changes = 1 + random.Below(4); i < changes && !input.empty(); ++i) {
    const auto size = static_cast<uint32_t>(input.size());
    const uint32_t at = random.Below(random.Below(2) ? std::min(size, 300u) : size);
    switch (random.Below(7)) {
      case 0:
        input[at] ^= static_cast<uint8_t>(1u << random.Below(8));
        break;
      case 1:
        input[at] = static_cast<uint8_t>(random.Next());
        break;
      case 2:
        input[at] = random.Below(2) ? 0xFF : 0;
        break;
      case 3:
        input.resize(at);
        break;
      case 4:
        input.insert(input.begin() + at, 1 + random.Below(40), static_cast<uint8_t>(random.Next()));
        break;
      case 5:
        input.erase(input.begin() + at, input.begin() + std::min(size, at + 1 + random.Below(16)));
        break;
      default: {  // a piece of another input
        const Input& other = corpus[random.Below(static_cast<uint32_t>(corpus.size()))];
        const uint32_t from = random.Below(static_cast<uint32_t>(other.size()));
        const size_t count = std::min<size_t>({other.size() - from, input.size() - at, 64});
        std::copy_n(other.begin() + from, count, input.begin() + at);
      }
    }
  }
}

int Main(int folders, char** names) {
  std::vector<Input> corpus;
  for (int i = 0; i < folders; ++i) {
    for (const auto& entry : std::filesystem::directory_iterator(names[i])) {
      std::ifstream in(entry.path(), std::ios::binary);
      corpus.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
      if (corpus.back().empty()) corpus.pop_back();
    }
  }
  if (corpus.empty()) {
    std::fprintf(stderr, "no corpus: give its folders\n");
    return 2;
  }
  const uint64_t seed = FromEnvironment("LATTICEKV_SEED", 20260101);
  const uint64_t seconds = FromEnvironment("LATTICEKV_FUZZ_SECONDS", 5);
  std::printf("seed %llu, %zu inputs\n", static_cast<unsigned long long>(seed), corpus.size());
  for (const Input& input : corpus) {
    Run(input);
    for (size_t size = 0; size < input.size(); size += 1 + input.size() / 64) {
      Run(Input(input.begin(), input.begin() + static_cast<std::ptrdiff_t>(size)));
    }
  }
  Random random(seed);
  uint64_t runs = 0;
  const std::clock_t end =
      std::clock() + static_cast<std::clock_t>(seconds) * std::clock_t{CLOCKS_PER_SEC};
  for (; std::clock() < end; ++runs) {
    Input input = corpus[random.Below(static_cast<uint32_t>(corpus.size()))];
    Mutate(random, corpus, input);
    Run(input);
  }
  std::printf("%llu mutants in %llu CPU seconds\n", static_cast<unsigned long long>(runs),
              static_cast<unsigned long long>(seconds));
  return 0;
}

}  // namespace
}  // namespace latticekv::testing

int main(int argc, char** argv) { return latticekv::testing::Main(argc - 1, argv + 1); }
