#include "tests/support/mutation.h"

#include <cstdlib>

#include "core/base/crc32c.h"
#include "core/codec/frame_format.h"

namespace latticekv::testing {

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text ? std::strtoull(text, nullptr, 10) : otherwise;
}

void Reseal(ByteVector& frame) {
  if (frame.size() < kFrameHeaderBytes) return;
  const size_t layers = LoadLe<uint16_t>(&frame[28]);
  size_t at = kFrameHeaderBytes + layers * kLayerEntryBytes + LoadLe<uint32_t>(&frame[120]);
  const size_t table_end = at;
  if (table_end > frame.size()) return;
  for (size_t l = 0; l < layers; ++l) {
    std::byte* entry = &frame[kFrameHeaderBytes + l * kLayerEntryBytes];
    const size_t size = LoadLe<uint32_t>(entry);
    if (size > frame.size() - at) return;
    StoreLe<uint32_t>(entry + 4, Crc32c(ByteSpan(frame).subspan(at, size)));
    at += size;
  }
  StoreLe<uint32_t>(&frame[kFrameHeaderBytes - 4], 0);
  StoreLe<uint32_t>(&frame[kFrameHeaderBytes - 4], Crc32c(ByteSpan(frame).first(table_end)));
}

}  // namespace latticekv::testing
