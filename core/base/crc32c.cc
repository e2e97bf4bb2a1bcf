#include "core/base/crc32c.h"

#include <array>

#if defined(__x86_64__)
#include <immintrin.h>
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
      const bool more = left >= 6 * kRunBytes;
      for (size_t line = 0; line < kRunBytes; line += 64) {
        // The processor's own prefetching begins anew with every run.
        for (size_t run = 3; more && run < 6; ++run) {
          _mm_prefetch(p + run * kRunBytes + line, _MM_HINT_T0);
        }
        for (size_t i = line; i < line + 64; i += 8) {
          state = _mm_crc32_u64(state, LoadLe<uint64_t>(p + i));
          second = _mm_crc32_u64(second, LoadLe<uint64_t>(p + kRunBytes + i));
          third = _mm_crc32_u64(third, LoadLe<uint64_t>(p + 2 * kRunBytes + i));
        }
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

// Folding (Gopal et al. 2009): a block of 128 bits and one d bits behind it have the same remainder
// as the second plus the first times x^d. Blocks are bit-reflected, so that a carry-less product is
// one x too many, and each half of a block has a constant of its own: x^(d-1) for the later 64
// bits, x^(d+63) for the earlier, modulo the polynomial, in a word's upper half.
constexpr uint64_t FoldBy(uint32_t bits) {
  uint32_t power = 0x80000000u;  // 1, reflected
  for (uint32_t i = 0; i + 1 < bits; ++i) {
    power = (power >> 1) ^ ((power & 1) ? 0x82F63B78u : 0u);
  }
  return uint64_t{power} << 32;
}

#define LKV_FOLD_TARGET __attribute__((target("avx512f,vpclmulqdq,pclmul,sse4.2")))

LKV_FOLD_TARGET inline __m512i Fold(__m512i block, __m512i constants, __m512i onto) {
  return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(block, constants, 0x00),
                                   _mm512_clmulepi64_epi128(block, constants, 0x11), onto, 0x96);
}

template <uint32_t kBits>
LKV_FOLD_TARGET inline __m512i FoldConstants() {
  constexpr auto kEarlier = static_cast<int64_t>(FoldBy(kBits + 64));
  constexpr auto kLater = static_cast<int64_t>(FoldBy(kBits));
  return _mm512_set_epi64(kLater, kEarlier, kLater, kEarlier, kLater, kEarlier, kLater, kEarlier);
}

constexpr size_t kFoldStride = 256;
// What some processors' own prefetching does not reach: a core then waits for memory less.
constexpr size_t kFoldAhead = 4096;

// Four registers of 64 bytes side by side.
struct FoldState {
  __m512i a, b, c, d;

  LKV_FOLD_TARGET void Step(__m512i constants, const std::byte* p) {
    a = Fold(a, constants, _mm512_loadu_si512(p));
    b = Fold(b, constants, _mm512_loadu_si512(p + 64));
    c = Fold(c, constants, _mm512_loadu_si512(p + 128));
    d = Fold(d, constants, _mm512_loadu_si512(p + 192));
  }
};

// The last 64 bytes of state go through the instruction.
LKV_FOLD_TARGET uint32_t Crc32cAvx512(ByteSpan bytes, uint32_t crc) {
  if (bytes.size() < 2 * kFoldStride) return Crc32cSse42(bytes, crc);
  const std::byte* p = bytes.data();
  size_t left = bytes.size() - kFoldStride;
  const __m512i start = _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(~crc)));
  FoldState s{_mm512_xor_si512(start, _mm512_loadu_si512(p)), _mm512_loadu_si512(p + 64),
              _mm512_loadu_si512(p + 128), _mm512_loadu_si512(p + 192)};
  const __m512i far = FoldConstants<8 * kFoldStride>();
  p += kFoldStride;
  for (; left >= kFoldStride + kFoldAhead; left -= kFoldStride, p += kFoldStride) {
    for (size_t i = 0; i < kFoldStride; i += 64) _mm_prefetch(p + kFoldAhead + i, _MM_HINT_T1);
    s.Step(far, p);
  }
  for (; left >= kFoldStride; left -= kFoldStride, p += kFoldStride) s.Step(far, p);
  const __m512i near = FoldConstants<512>();
  alignas(64) std::array<uint64_t, 8> words;
  _mm512_store_si512(words.data(), Fold(Fold(Fold(s.a, near, s.b), near, s.c), near, s.d));
  uint64_t state = 0;
  for (const uint64_t word : words) state = _mm_crc32_u64(state, word);
  return Crc32cSse42({p, left}, ~static_cast<uint32_t>(state));
}
#undef LKV_FOLD_TARGET
#endif

}  // namespace

uint32_t Crc32cPortable(ByteSpan bytes, uint32_t crc) {
  crc = ~crc;
  for (std::byte b : bytes) crc = (crc >> 8) ^ kTable[(crc ^ std::to_integer<uint32_t>(b)) & 255];
  return ~crc;
}

std::vector<Crc32cFunction> Crc32cVersions() {
  std::vector<Crc32cFunction> out;
#if defined(__x86_64__)
  const bool sse42 = __builtin_cpu_supports("sse4.2");
  if (sse42 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq")) {
    out.push_back(Crc32cAvx512);
  }
  if (sse42) out.push_back(Crc32cSse42);
#endif
  out.push_back(Crc32cPortable);
  return out;
}

uint32_t Crc32c(ByteSpan bytes, uint32_t crc) {
  static const Crc32cFunction fastest = Crc32cVersions().front();
  return fastest(bytes, crc);
}

}  // namespace latticekv
