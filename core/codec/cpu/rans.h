// 32-lane interleaved rANS with 10-bit probabilities and 16-bit renormalisation (Duda 2013; Giesen
// 2014 for the interleaving). Internal to core/codec/cpu.
//
// A tile's symbols are coded in a fixed order; each belongs to a lane, each lane has its own 32-bit
// state, and all lanes share one stream of 16-bit words, read in the order of the symbols. A warp,
// a vector register and a scalar loop over the lanes therefore read the same words.
#ifndef LATTICEKV_CORE_CODEC_CPU_RANS_H_
#define LATTICEKV_CORE_CODEC_CPU_RANS_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "core/base/bytes.h"
#include "core/codec/cpu/kernels.h"
#include "core/codec/entropy_tables.h"
#include "core/codec/tile_format.h"

namespace latticekv {

inline constexpr uint32_t kRansLow = 1u << 16;  // states are in [kRansLow, 2^32)

// Codes symbols in the reverse of the order in which a decoder reads them. Not thread-safe.
class RansEncoder {
 public:
  // Starts a tile of at most `symbols` symbols and raw bits.
  void Start(size_t symbols) {
    state_.fill(kRansLow);
    if (words_.size() < symbols + kWordSlack) words_.resize(symbols + kWordSlack);
    out_ = words_.data();
  }
  void Symbol(int lane, EncodeEntry entry) {
    uint32_t x = state_[lane];
    const uint32_t frequency = entry.frequency;
    if (x >= static_cast<uint64_t>(frequency) << 22) x = Emit(x);
    const uint32_t quotient =
        static_cast<uint32_t>(static_cast<unsigned __int128>(x) * Reciprocal(frequency) >> 63);
    // (quotient << 10) + remainder + start
    state_[lane] = x + quotient * (kProbabilityTotal - frequency) + entry.start;
  }
  void Bits(int lane, uint32_t bits, int count) {
    uint32_t x = state_[lane];
    if (x >> (32 - count)) x = Emit(x);
    state_[lane] = x << count | bits;
  }
  // Appends the 32 states and the words.
  void Finish(ByteWriter& out) {
    for (uint32_t x : state_) out.Put(x);
    // Decoders read the words in the other order.
    const size_t size = 2 * static_cast<size_t>(out_ - words_.data());
    if (bytes_.size() < size) bytes_.resize(size);
    std::byte* to = bytes_.data() + size;
    const uint16_t* word = words_.data();
    for (; out_ - word >= 4; word += 4) {
      uint64_t four = LoadLe<uint64_t>(word);
      four = four << 32 | four >> 32;
      StoreLe(to -= 8, (four & 0x0000FFFF0000FFFF) << 16 | (four >> 16 & 0x0000FFFF0000FFFF));
    }
    for (; word != out_; ++word) StoreLe(to -= 2, *word);
    out.PutBytes(ByteSpan(bytes_).first(size));
  }
  // For kernels, which continue with both.
  uint32_t* state() { return state_.data(); }
  uint16_t*& out() { return out_; }

 private:
  uint32_t Emit(uint32_t x) {
    *out_++ = static_cast<uint16_t>(x);
    return x >> 16;
  }
  // ceil(2^63 / frequency): exact for quotients of 32-bit numbers, since 2^32 / 2^63 < 1 / 1024.
  static uint64_t Reciprocal(uint32_t frequency) {
    static constexpr std::array<uint64_t, kProbabilityTotal + 1> table = [] {
      std::array<uint64_t, kProbabilityTotal + 1> t{};
      for (uint32_t f = 1; f <= kProbabilityTotal; ++f) t[f] = ((uint64_t{1} << 63) + f - 1) / f;
      return t;
    }();
    return table[frequency];
  }

  std::array<uint32_t, kLanes> state_;
  std::vector<uint16_t> words_;
  ByteVector bytes_;
  uint16_t* out_ = nullptr;
};

// Reads what RansEncoder wrote. Past the end of the words it reads zeros and ok() is false. Not
// thread-safe.
class RansDecoder {
 public:
  // `bytes`: 32 states, then words; at least 128 bytes and even. Kernels need kWordSlack readable
  // words behind them.
  explicit RansDecoder(ByteSpan bytes)
      : next_(bytes.data() + 4 * kLanes), end_(bytes.data() + bytes.size()) {
    for (int i = 0; i < kLanes; ++i) state_[i] = LoadLe<uint32_t>(bytes.data() + 4 * i);
  }
  int Symbol(int lane, const std::array<DecodeEntry, kProbabilityTotal>& table) {
    uint32_t x = state_[lane];
    const DecodeEntry e = table[x & (kProbabilityTotal - 1)];
    x = e.frequency() * (x >> kProbabilityBits) + e.offset();
    state_[lane] = Renormalise(x);
    return e.symbol();
  }
  // The coset: half has the `half_frequency` highest slots.
  bool Coset(int lane, uint32_t half_frequency) {
    uint32_t x = state_[lane];
    const uint32_t slot = x & (kProbabilityTotal - 1), whole = kProbabilityTotal - half_frequency;
    const bool half = slot >= whole;
    x = (half ? half_frequency : whole) * (x >> kProbabilityBits) + (half ? slot - whole : slot);
    state_[lane] = Renormalise(x);
    return half;
  }
  uint32_t Bits(int lane, int count) {
    uint32_t x = state_[lane];
    const uint32_t bits = x & ((1u << count) - 1);
    state_[lane] = Renormalise(x >> count);
    return bits;
  }
  // True when every word was read and every state is back where the encoder began.
  bool Finished() const {
    return ok_ && next_ == end_ &&
           std::all_of(state_.begin(), state_.end(), [](uint32_t x) { return x == kRansLow; });
  }
  bool ok() const { return ok_; }
  // For kernels, which continue with them.
  uint32_t* state() { return state_.data(); }
  const std::byte* next() const { return next_; }
  const std::byte* end() const { return end_; }
  // A kernel went on to `next`; beyond the end it read what was not there.
  void Advance(const std::byte* next) {
    ok_ &= next <= end_;
    next_ = ok_ ? next : end_;
  }

 private:
  uint32_t Renormalise(uint32_t x) {
    if (x >= kRansLow) return x;
    if (next_ == end_) {
      ok_ = false;
      return x | kRansLow;
    }
    x = x << 16 | LoadLe<uint16_t>(next_);
    next_ += 2;
    return x;
  }
  std::array<uint32_t, kLanes> state_;
  const std::byte* next_;
  const std::byte* end_;
  bool ok_ = true;
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CPU_RANS_H_
