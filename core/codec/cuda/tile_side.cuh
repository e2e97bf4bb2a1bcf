// What of a tile is not lattice points: raw vectors, and the side values that become steps, means
// and tables. The scalar originals are core/codec/tile_format.cc and core/codec/cpu/tile_coder.cc.
#ifndef LATTICEKV_CORE_CODEC_CUDA_TILE_SIDE_CUH_
#define LATTICEKV_CORE_CODEC_CUDA_TILE_SIDE_CUH_

#include "core/codec/cuda/mass_rows.cuh"
#include "core/codec/cuda/warp_coder.cuh"
#include "core/codec/side_arithmetic.h"

namespace latticekv::cuda {

// The resolved numbers of a unit in scratch, steps and means as the coder's numbers want them.
struct Resolved {
  RowRecord* rows;
  float* step;  // of keys' channels; while resolving, the step indices' bits
  int32_t* mean;
  uint8_t* table;  // 6 * spread index; where steps vary with attention, sigma indices
  uint8_t* low_bits;  // zeros there
  __device__ Resolved(unsigned char* arena, const UnitTask& unit) {
    rows = reinterpret_cast<RowRecord*>(arena + unit.resolved_at);
    step = reinterpret_cast<float*>(rows + unit.coded_count);
    mean = reinterpret_cast<int32_t*>(step + (unit.is_key ? unit.dim : 0));
    table = reinterpret_cast<uint8_t*>(mean + unit.dim);
    low_bits = table + unit.dim;
  }
};

// Calls visit(i, value) for i < count, values read in rounds of 32, or zero where none are sent.
template <typename Visit>
__device__ void ForEachSideValue(WarpCoder& coder, uint32_t count, bool sent, uint32_t spread,
                                 uint32_t bits, Visit visit) {
  const uint32_t lane = WarpCoder::Lane();
  const uint32_t table = TableId(static_cast<int>(spread), bits > 0, kAll);
  for (uint32_t at = 0; at < count; at += 32) {
    const bool active = at + lane < count;
    int value = 0;
    if (sent) {
      coder.Reserve(64);
      value = coder.Symbol(table, active) * (1 << bits);
      if (bits > 0) value += static_cast<int>(coder.Bits(bits, active));
    }
    if (active) visit(at + lane, value);
  }
  __syncwarp();
}

__device__ inline unsigned char* VectorAt(const UnitTask& unit, const TokenPlace* places,
                                          uint32_t token) {
  const TokenPlace place = places[token];
  return reinterpret_cast<unsigned char*>(unit.dst) + place.block * unit.block_stride +
         place.slot * unit.token_stride;
}

// Reads a unit's side values and resolves its numbers. False when one is out of range. kMass: the
// tile has step offsets.
template <bool kMass>
__device__ bool ResolveUnit(const DeviceConstants& constants, unsigned char* arena,
                                   const TileTask& tile, const UnitTask& unit, WarpCoder& coder) {
  const Resolved out(arena, unit);
  const ProfileHead* head = reinterpret_cast<const ProfileHead*>(arena + unit.profile_at);
  const int32_t* profile_mean = reinterpret_cast<const int32_t*>(head + 1);
  const int16_t* profile_sigma = reinterpret_cast<const int16_t*>(profile_mean + unit.dim);
  const int16_t* profile_step = profile_sigma + unit.dim;
  const auto* places = reinterpret_cast<const TokenPlace*>(arena + tile.places_at);
  const bool key = unit.is_key;
  bool good = true;

  const auto small = [](int v) { return v >= -kMaxSideDifference && v <= kMaxSideDifference; };
  const auto set_step = [&](uint32_t c, int step) {
    if (unit.step_source == 2) step = ProfileStep(unit.step_base, profile_step[c]);
    good &= step >= -kMaxStepIndex && step <= kMaxStepIndex;
    if (key) {
      out.step[c] = __int_as_float(step);
    } else if constexpr (kMass) {
      // What is sent is the row's offset; its bits stay here until all of them are known.
      out.rows[c].step = __int_as_float(step - unit.step_base);
    } else {
      out.rows[c].step = ScaledStep(step);
    }
  };
  const auto on_step = [&](uint32_t i, int value) {
    good &= small(value);
    // A slot of keys is a rotary pair or a channel behind the pairs.
    if (i < unit.pairs) set_step(i, unit.step_base + value);
    set_step(i + unit.pairs, unit.step_base + value);
  };
  const auto step_16 = [&](uint32_t c) {
    return key ? 4 * __float_as_int(out.step[c]) : tile.value_unit_16;
  };
  const auto on_mean = [&](uint32_t c, int value) {
    if (unit.mean_source >= 2) {
      value += MeanInQuarterSteps(profile_mean[c], head->mean_exponent, step_16(c),
                                  constants.down_factors);
    }
    good &= value >= -2 * kMaxMeanQuarters && value <= 2 * kMaxMeanQuarters;
    out.mean[c] = ScaledMean(value);
  };
  const auto on_sigma = [&](uint32_t c, int value) {
    good &= small(value);
    int sigma = (unit.spread_source == 2 ? 0 : unit.sigma_base) + value;
    if (unit.spread_source >= 2) {
      sigma += SigmaIndexOf(profile_sigma[c], step_16(c), constants.sigma_with_noise_16);
    }
    good &= sigma >= 0 && sigma <= kMaxSigmaIndex;
    if constexpr (kMass) {
      out.table[c] = static_cast<uint8_t>(sigma);
      out.low_bits[c] = 0;
    } else {
      const SigmaCode code = SigmaCodeOf(sigma);
      out.table[c] = static_cast<uint8_t>(TableId(code.spread, 0, kAll));
      out.low_bits[c] = code.low_bits;
    }
    // The index has done its work.
    if (key) out.step[c] = ScaledStep(__float_as_int(out.step[c]));
  };
  ForEachSideValue(coder, key ? unit.dim - unit.pairs : unit.coded_count, unit.step_source == 1,
                   unit.step_spread, unit.step_bits, on_step);
  ForEachSideValue(coder, unit.dim, unit.mean_source & 1, unit.mean_spread, unit.mean_bits,
                   on_mean);
  ForEachSideValue(coder, unit.dim, unit.spread_source & 1, unit.sigma_spread, unit.sigma_bits,
                   on_sigma);
  for (uint32_t i = WarpCoder::Lane(); i < unit.coded_count; i += 32) {
    const uint32_t token = arena[unit.order_at + unit.raw_count + i];
    out.rows[i].dst = reinterpret_cast<uint64_t>(VectorAt(unit, places, token));
    out.rows[i].token = token;
    if constexpr (kMass) {
      const auto* of_keys = reinterpret_cast<const int8_t*>(arena + tile.offsets_at);
      const int offset = key ? of_keys[token] : __float_as_int(out.rows[i].step);
      good &= offset >= -kMaxStepOffset && offset <= kMaxStepOffset;
      SetOffset(ClampValue(offset, -kMaxStepOffset, kMaxStepOffset), out.rows[i]);
    }
  }
  __syncwarp();
  return __all_sync(kAllLanes, good);
}

// Copies a unit's raw vectors, or zeros a unit that is all zero.
__device__ inline void CopyRawVectors(const unsigned char* arena, const TileTask& tile,
                                      const UnitTask& unit) {
  const uint32_t lane = WarpCoder::Lane();
  const auto* places = reinterpret_cast<const TokenPlace*>(arena + tile.places_at);
  const uint32_t count = unit.all_zero ? tile.tokens : unit.raw_count;
  for (uint32_t n = 0; n < count; ++n) {
    const uint32_t token = unit.all_zero ? n : arena[unit.order_at + n];
    unsigned char* dst = VectorAt(unit, places, token);
    const unsigned char* src = arena + unit.raw_at + size_t{n} * unit.vector_bytes;
    const uintptr_t both = reinterpret_cast<uintptr_t>(dst) | reinterpret_cast<uintptr_t>(src);
    if (unit.all_zero) {
      for (uint32_t i = lane; i < unit.vector_bytes; i += 32) dst[i] = 0;
    } else if (((both | unit.vector_bytes) & 3) == 0) {
      for (uint32_t i = 4 * lane; i < unit.vector_bytes; i += 128) {
        *reinterpret_cast<uint32_t*>(dst + i) = *reinterpret_cast<const uint32_t*>(src + i);
      }
    } else {
      for (uint32_t i = lane; i < unit.vector_bytes; i += 32) dst[i] = src[i];
    }
  }
}

}  // namespace latticekv::cuda

#endif  // LATTICEKV_CORE_CODEC_CUDA_TILE_SIDE_CUH_
