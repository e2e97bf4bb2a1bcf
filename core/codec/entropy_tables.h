// The fixed tables of the frame format (docs/format/frame.md, "Entropy tables") in the forms that
// encoder and decoder use. Internal to core/codec.
#ifndef LATTICEKV_CORE_CODEC_ENTROPY_TABLES_H_
#define LATTICEKV_CORE_CODEC_ENTROPY_TABLES_H_

#include <array>
#include <cstddef>
#include <cstdint>

namespace latticekv {

struct EntropyTableHead {
  int16_t first;    // smallest symbol
  uint16_t stride;  // 1: all integers, 2: every second
  uint16_t count;
  uint16_t at;  // of its first frequency
};

#include "core/codec/entropy_tables.inc"

inline constexpr int kProbabilityBits = 10;
inline constexpr uint32_t kProbabilityTotal = 1u << kProbabilityBits;

// Which table: spread index 0..11 (spread 2^((index - 7) / 2)), coset, subset.
enum Subset { kAll = 0, kEven = 1, kOdd = 2 };
inline constexpr int TableId(int spread, int half, Subset subset) {
  return (spread * 2 + half) * 3 + subset;
}
inline constexpr int kTableIds = kEntropyTables * 6;

// A channel's sigma index s covers spreads beyond the tables: from the last table on, s codes
// k >> b with table s - 2b and sends the b low bits as they are.
inline constexpr int kMaxSigmaIndex = 29;
struct SigmaCode {
  uint8_t spread;
  uint8_t low_bits;
};
inline constexpr SigmaCode SigmaCodeOf(int sigma_index) {
  const int b = sigma_index < kEntropyTables ? 0 : (sigma_index - kEntropyTables + 2) / 2;
  return {static_cast<uint8_t>(sigma_index - 2 * b), static_cast<uint8_t>(b)};
}
// Largest |k| (roughly; exactly: -limit <= k < limit) that the tables of a spread index hold.
inline constexpr int SpreadLimit(int spread) {
  return -kEntropyTableHeads[TableId(spread, 1, kAll)].first;
}

// Symbols of any table lie in -kSymbolOffset .. kSymbolOffset.
inline constexpr int kSymbolOffset = 32;
inline constexpr size_t kSymbolRoom = 72;  // for them all, a multiple of eight

struct EncodeEntry {
  uint16_t frequency;  // 0: the table does not hold this symbol
  uint16_t start;
  uint16_t cost;  // 256 log2(1024 / frequency), rounded
};
// Symbol, frequency and the slot's offset within the symbol's range in one word: all tables
// together then fit a core's second-level cache.
class DecodeEntry {
 public:
  DecodeEntry() = default;
  DecodeEntry(int symbol, uint32_t frequency, uint32_t offset)
      : packed_(static_cast<uint32_t>(symbol) << 22 | (frequency - 1) << 10 | offset) {}
  int symbol() const { return static_cast<int32_t>(packed_) >> 22; }
  uint32_t frequency() const { return (packed_ >> 10 & 1023) + 1; }
  uint32_t offset() const { return packed_ & 1023; }

 private:
  uint32_t packed_ = 0;
};

// For encoders' kernels: start in bits 0..9, frequency in 10..19, cost in 20..31 of one word.
// Entries are by doubled coordinate mod 128 where no low bits are sent (but for the last coordinate
// of a group, and the last), by symbol mod 128 where some are.
enum PointKind { kPointPlain = 0, kPointLast = 1, kPointHigh = 2, kPointKinds = 3 };
inline constexpr uint32_t kPointEntries = 128;
inline constexpr int kPointFrequencyShift = 10;
inline constexpr int kPointCostShift = 20;

struct EntropyTables {
  // [table][symbol + kSymbolOffset], [table][slot]
  std::array<std::array<EncodeEntry, 2 * kSymbolOffset + 1>, kTableIds> encode;
  std::array<std::array<DecodeEntry, kProbabilityTotal>, kTableIds> decode;
  // [(spread * kPointKinds + kind) * kPointEntries + entry], and the costs alone.
  std::array<uint32_t, kEntropyTables * kPointKinds * kPointEntries> points;
  std::array<uint16_t, kEntropyTables * kPointKinds * kPointEntries> point_costs;
  // [table][symbol + kSymbolOffset], 0 for what a table does not hold.
  std::array<std::array<int16_t, kSymbolRoom>, kTableIds> symbol_costs;
};

// Built once. Thread-safe.
const EntropyTables& Tables();

// Frequency of the half coset for a unit's coset index 0..31.
inline constexpr uint32_t HalfCosetFrequency(uint32_t index) { return index == 0 ? 1 : 32 * index; }

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_ENTROPY_TABLES_H_
