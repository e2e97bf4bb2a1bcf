#include "core/base/crc32c.h"

#include <array>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace latticekv {
namespace {

constexpr std::array<uint32_t, 256> MakeTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? 0x82F63B78u : 0u);
    table[i] = crc;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kTable = MakeTable();

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t Crc32cSse42(ByteSpan bytes, uint32_t crc) {
  uint64_t state = ~crc;
  const std::byte* p = bytes.data();
  size_t left = bytes.size();
  for (; left >= 8; left -= 8, p += 8) state = _mm_crc32_u64(state, LoadLe<uint64_t>(p));
  for (; left > 0; --left, ++p) {
    state = _mm_crc32_u8(static_cast<uint32_t>(state), std::to_integer<uint8_t>(*p));
  }
  return ~static_cast<uint32_t>(state);
}
#endif

}  // namespace

uint32_t Crc32cPortable(ByteSpan bytes, uint32_t crc) {
  crc = ~crc;
  for (std::byte b : bytes) crc = (crc >> 8) ^ kTable[(crc ^ std::to_integer<uint32_t>(b)) & 255];
  return ~crc;
}

uint32_t Crc32c(ByteSpan bytes, uint32_t crc) {
#if defined(__x86_64__)
  static const bool has_sse42 = __builtin_cpu_supports("sse4.2");
  if (has_sse42) return Crc32cSse42(bytes, crc);
#endif
  return Crc32cPortable(bytes, crc);
}

}  // namespace latticekv
