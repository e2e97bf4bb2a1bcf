// .lkv and safetensors files from anywhere: reading ends with a status, and what was accepted can
// be read to its end. The first byte says which of the two, and whether the .lkv file's checksums
// are made right first.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "client/src/cache_file.h"
#include "client/src/lkv_file.h"
#include "core/base/crc32c.h"
#include "core/base/limits.h"
#include "core/layout/model_profile.h"
#include "tests/fuzz/subjects.h"
#include "tests/support/mutation.h"

namespace latticekv::testing {
namespace {

// A header may promise more than a fuzzer should wait for.
constexpr uint64_t kLargestDecode = 4 << 20;
constexpr size_t kMostFrames = 4;

void Require(bool condition) {
  if (!condition) std::abort();
}

// The header's checksum, then those of the frames that it locates.
void ResealFile(ByteVector& file) {
  if (file.size() < kLkvFixedHeaderBytes) return;
  const size_t size = LoadLe<uint32_t>(&file[8]);
  if (size > file.size() - kLkvFixedHeaderBytes) return;
  const ByteSpan all(file);
  StoreLe<uint32_t>(&file[12],
                    Crc32c(all.subspan(kLkvFixedHeaderBytes, size), Crc32c(all.first(12))));
  const auto parsed = ParseLkv(file);
  for (size_t i = 0; parsed.ok() && i < parsed->frames.size(); ++i) {
    const ByteSpan at = parsed->frames[i];
    ByteVector frame(at.begin(), at.end());
    Reseal(frame);
    std::copy(frame.begin(), frame.end(), file.begin() + (at.data() - file.data()));
  }
}

void ReadLkv(ByteVector file, bool reseal) {
  if (reseal) ResealFile(file);
  const auto parsed = ParseLkv(file);
  if (!parsed.ok()) {
    Require(!parsed.status().message().empty());
    return;
  }
  const Layout& layout = parsed->header.layout;
  absl::StatusOr<ModelProfile> profile = absl::NotFoundError("none");
  if (!parsed->header.profile.empty()) profile = ParseProfile(parsed->header.profile, layout);
  for (size_t i = 0; i < std::min(parsed->frames.size(), kMostFrames); ++i) {
    const auto decoder = OpenLkvFrame(*parsed, i, profile.ok() ? &*profile : nullptr);
    if (!decoder.ok()) continue;
    const uint64_t size = layout.token_bytes() * decoder->info().tokens;
    if (size > kLargestDecode) continue;
    ByteVector raw(size);
    const absl::Status status = DecodeFrame(*decoder, layout, raw);
    Require(status.ok() || !status.message().empty());
  }
}

void ReadSafetensors(ByteSpan bytes) {
  const int fd = memfd_create("fuzz", 0);
  Require(fd >= 0);
  Require(write(fd, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
  const auto cache = LoadCache("/proc/self/fd/" + std::to_string(fd));
  if (cache.ok()) {
    uint64_t sum = 0;
    const auto views = cache->Views(cache->tokens - 1);
    for (size_t l = 0; l < views.size(); ++l) {
      for (size_t p = 0; p < views[l].size(); ++p) {
        const PlaneSpec& plane = cache->layout.layers[l].planes[p];
        sum += std::to_integer<uint64_t>(views[l][p].data[plane.token_bytes() - 1]);
      }
    }
    Require(sum <= uint64_t{255} * limits::kMaxLayers * limits::kMaxPlanesPerLayer);
    Require(ParseLayout(SerializeLayout(cache->layout)).ok());
  }
  close(fd);
}

}  // namespace
}  // namespace latticekv::testing

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace latticekv;
  using namespace latticekv::testing;
  if (size < 1) return 0;
  const ByteSpan input = std::as_bytes(std::span(data + 1, size - 1));
  if (data[0] & kFuzzSafetensors) {
    ReadSafetensors(input);
  } else {
    ReadLkv(ByteVector(input.begin(), input.end()), data[0] & kFuzzReseal);
  }
  return 0;
}
