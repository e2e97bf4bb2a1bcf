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
// The instruction takes three cycles and starts one a cycle: three runs of bytes side by side.
constexpr size_t kRunBytes = 2048;

// What kRunBytes zero bytes do to a checksum's state: linear over its bits, so by bytes of it.
struct RunShift {
  std::array<std::array<uint32_t, 256>, 4> tables;

  __attribute__((target("sse4.2"))) RunShift() {
    std::array<uint32_t, 32> bits;
    for (uint32_t bit = 0; bit < 32; ++bit) {
      uint64_t state = uint64_t{1} << bit;
      for (size_t i = 0; i < kRunBytes; i += 8) state = _mm_crc32_u64(state, 0);
      bits[bit] = static_cast<uint32_t>(state);
    }
    for (uint32_t byte = 0; byte < 4; ++byte) {
      for (uint32_t value = 0; value < 256; ++value) {
        uint32_t out = 0;
        for (uint32_t bit = 0; bit < 8; ++bit) {
          if (value >> bit & 1) out ^= bits[8 * byte + bit];
        }
        tables[byte][value] = out;
      }
    }
  }
  uint32_t operator()(uint32_t state) const {
    return tables[0][state & 255] ^ tables[1][state >> 8 & 255] ^ tables[2][state >> 16 & 255] ^
           tables[3][state >> 24];
  }
};

__attribute__((target("sse4.2"))) uint32_t Crc32cSse42(ByteSpan bytes, uint32_t crc) {
  uint64_t state = ~crc;
  const std::byte* p = bytes.data();
  size_t left = bytes.size();
  if (left >= 3 * kRunBytes) {
    static const RunShift shift;
    for (; left >= 3 * kRunBytes; left -= 3 * kRunBytes, p += 3 * kRunBytes) {
      uint64_t second = 0, third = 0;
      for (size_t i = 0; i < kRunBytes; i += 8) {
        state = _mm_crc32_u64(state, LoadLe<uint64_t>(p + i));
        second = _mm_crc32_u64(second, LoadLe<uint64_t>(p + kRunBytes + i));
        third = _mm_crc32_u64(third, LoadLe<uint64_t>(p + 2 * kRunBytes + i));
      }
      state = shift(static_cast<uint32_t>(state)) ^ second;
      state = shift(static_cast<uint32_t>(state)) ^ third;
    }
  }
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
