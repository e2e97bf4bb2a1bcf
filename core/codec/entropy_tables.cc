#include "core/codec/entropy_tables.h"

#include <cstddef>

namespace latticekv {
namespace {

// So that a frequency fits ten bits of a packed entry.
static_assert([] {
  for (uint16_t frequency : kEntropyFrequencies) {
    if (frequency == 0 || frequency >= kProbabilityTotal) return false;
  }
  return true;
}());

void FillCosts(EntropyTables& out) {
  for (int spread = 0; spread < kEntropyTables; ++spread) {
    auto& cost = out.cost[static_cast<size_t>(spread)];
    const auto of = [&](int half, Subset subset, int symbol) {
      return out
          .encode[static_cast<size_t>(TableId(spread, half, subset))]
                 [static_cast<size_t>(symbol + kSymbolOffset)]
          .cost;
    };
    for (int k = -kSymbolOffset; k < kSymbolOffset; ++k) {
      for (int half = 0; half < 2; ++half) {
        const auto at = static_cast<size_t>((2 * k + half) & (kCostEntries - 1));
        cost[kCostPlain][at] = of(half, kAll, k);
        cost[kCostLast][at] = of(half, k & 1 ? kOdd : kEven, k);
      }
      cost[kCostHigh][static_cast<size_t>(k & (kCostEntries - 1))] = of(1, kAll, k);
    }
  }
}

}  // namespace

const EntropyTables& Tables() {
  static const EntropyTables* const tables = [] {
    auto* out = new EntropyTables();
    for (int id = 0; id < kTableIds; ++id) {
      const EntropyTableHead& head = kEntropyTableHeads[id];
      uint16_t start = 0;
      for (int i = 0; i < head.count; ++i) {
        const int symbol = head.first + i * head.stride;
        const uint16_t frequency = kEntropyFrequencies[head.at + i];
        out->encode[id][symbol + kSymbolOffset] = {frequency, start, kCost256[frequency]};
        out->packed[static_cast<size_t>(id) * kPackedStride +
                    static_cast<size_t>(symbol + kSymbolOffset)] =
            start | uint32_t{frequency} << kPackedFrequencyShift |
            uint32_t{kCost256[frequency]} << kPackedCostShift;
        for (uint32_t slot = 0; slot < frequency; ++slot) {
          out->decode[id][start + slot] = DecodeEntry(symbol, frequency, slot);
        }
        start = static_cast<uint16_t>(start + frequency);
      }
    }
    FillCosts(*out);
    return out;
  }();
  return *tables;
}

}  // namespace latticekv
