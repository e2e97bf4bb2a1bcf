#include "core/codec/entropy_tables.h"

namespace latticekv {
namespace {

// So that a frequency fits ten bits of an entry of points.
static_assert([] {
  for (uint16_t frequency : kEntropyFrequencies) {
    if (frequency == 0 || frequency >= kProbabilityTotal) return false;
  }
  return true;
}());

void FillPoints(EntropyTables& out) {
  for (int spread = 0; spread < kEntropyTables; ++spread) {
    const auto set = [&](PointKind kind, int entry, int half, Subset subset, int symbol) {
      const EncodeEntry& e = out.encode[static_cast<size_t>(TableId(spread, half, subset))]
                                       [static_cast<size_t>(symbol + kSymbolOffset)];
      const size_t at = static_cast<size_t>(spread * kPointKinds + kind) * kPointEntries +
                        static_cast<size_t>(entry & static_cast<int>(kPointEntries - 1));
      out.points[at] = e.start | uint32_t{e.frequency} << kPointFrequencyShift |
                       uint32_t{e.cost} << kPointCostShift;
      out.point_costs[at] = e.cost;
    };
    for (int k = -kSymbolOffset; k < kSymbolOffset; ++k) {
      for (int half = 0; half < 2; ++half) {
        set(kPointPlain, 2 * k + half, half, kAll, k);
        set(kPointLast, 2 * k + half, half, k & 1 ? kOdd : kEven, k);
      }
      set(kPointHigh, k, 1, kAll, k);
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
        out->symbol_costs[id][symbol + kSymbolOffset] = static_cast<int16_t>(kCost256[frequency]);
        for (uint32_t slot = 0; slot < frequency; ++slot) {
          out->decode[id][start + slot] = DecodeEntry(symbol, frequency, slot);
        }
        start = static_cast<uint16_t>(start + frequency);
      }
    }
    FillPoints(*out);
    return out;
  }();
  return *tables;
}

}  // namespace latticekv
