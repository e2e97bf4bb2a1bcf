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
    return out;
  }();
  return *tables;
}

}  // namespace latticekv
