// Order of a tile's symbols, written once for both directions. Internal to core/codec/cpu.
#ifndef LATTICEKV_CORE_CODEC_CPU_TILE_CODER_H_
#define LATTICEKV_CORE_CODEC_CPU_TILE_CODER_H_

#include <cstdint>
#include <span>
#include <vector>

#include "core/base/bytes.h"
#include "core/codec/cpu/kernels.h"
#include "core/codec/cpu/rans.h"
#include "core/codec/tile_format.h"

namespace latticekv {

// A unit's plan and the values that the bitstream carries for it.
struct CodedUnit {
  UnitPlan plan;
  std::vector<int32_t> step_values, mean_values, sigma_values;  // as sent; empty when not sent
  std::vector<int16_t> q2;  // [coded][head_dim], twice the lattice point, canonical order
};

// How coordinates of a channel are coded, as kernels take it.
inline PointCode PointCodeOf(SigmaCode code) {
  return static_cast<PointCode>(TableId(code.spread, code.low_bits > 0, kAll)) |
         PointCode{code.low_bits} << kPointLowBitsShift;
}
// The same for encoding coordinate `i` (0..7) of a group.
inline EncodeCode EncodeCodeOf(PointCode code, uint32_t i) {
  const uint32_t spread = (code & 255) / 6, low = code >> kPointLowBitsShift;
  const uint32_t kind = low > 0 ? kPointHigh : i == 7 ? kPointLast : kPointPlain;
  return (spread * kPointKinds + kind) * kPointEntries | (low > 0 ? low + 1 : 0) << kEncodeShiftAt;
}
// Raw bits sent with coordinate `i` (0..7) of a group: the last coordinate's lowest bit is known.
inline int PointLowBits(SigmaCode code, int i) {
  return code.low_bits > 0 ? code.low_bits - (i == 7) : 0;
}

// Sizes of the three side arrays, from the header's sources.
struct SideSizes {
  size_t step, mean, sigma;
};
SideSizes SideSizesOf(const UnitPlan& plan);

// Codes side values and lattice points of a tile's units; nothing at all when there are none.
void EncodeTileSymbols(const CpuKernels& kernels, std::span<const CodedUnit> units,
                       RansEncoder& coder);

// Resolves the plans and reads the lattice points. `units` come with header, rows and sizes set.
// False when the bitstream or a resolved number is damaged.
bool DecodeTileSymbols(const CpuKernels& kernels, std::span<CodedUnit> units,
                       std::span<const HeadProfile* const> profiles, int16_t value_unit_16,
                       RansDecoder& coder);

// True when the tile codes any symbol.
bool TileHasSymbols(std::span<const CodedUnit> units);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CPU_TILE_CODER_H_
