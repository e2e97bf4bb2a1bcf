// The kernels on rows as plain loops: what they must compute, for every instruction set that has
// nothing better. Compiled once with each set's flags, hence internal linkage. Internal to
// core/codec/cpu.
#ifndef LATTICEKV_CORE_CODEC_CPU_ROW_KERNELS_H_
#define LATTICEKV_CORE_CODEC_CPU_ROW_KERNELS_H_

#include <cstdint>

#include "core/base/limits.h"
#include "core/codec/cpu/e8.h"
#include "core/codec/cpu/float_cast.h"
#include "core/codec/cpu/kernels.h"
#include "core/codec/entropy_tables.h"
#include "core/codec/fixed_point.h"
#include "core/codec/row_arithmetic.h"

namespace latticekv::row_kernels {

static inline uint32_t Classify(const float* before, const float* after, uint32_t dim) {
  // Sums of huge f32 values may leave the range of a float, so the rotated row is looked at too.
  uint32_t any = 0, infinite = 0;
  for (uint32_t c = 0; c < dim; ++c) {
    const uint32_t b = std::bit_cast<uint32_t>(before[c]), a = std::bit_cast<uint32_t>(after[c]);
    any |= b;
    infinite |= ((b & 0x7F800000) == 0x7F800000) | ((a & 0x7F800000) == 0x7F800000);
  }
  return (any != 0 ? kRowNotZero : 0) | (infinite ? kRowNotFinite : 0);
}

static inline uint32_t LoadRowUnrotated(const SourceRow& row, float* __restrict canonical) {
  float stored[limits::kMaxHeadDim];
  LoadRow(row.dtype, row.src, row.dim, stored);
  if (row.order == nullptr) {
    std::copy_n(stored, row.dim, canonical);
  } else {
    for (uint32_t c = 0; c < row.dim; ++c) canonical[c] = stored[row.order[c]];
  }
  Unrotate(row.angle, row.pairs, canonical);
  return Classify(stored, canonical, row.dim);
}

static inline uint32_t LargestBits(const float* x, uint32_t dim) {
  uint32_t largest = 0;
  for (uint32_t c = 0; c < dim; ++c) {
    const uint32_t bits = std::bit_cast<uint32_t>(x[c]) & 0x7FFFFFFF;
    largest = largest > bits ? largest : bits;
  }
  return largest;
}

static inline RowNorm Norm(const float* x, uint32_t dim) {
  const uint32_t largest = LargestBits(x, dim);
  const float scale = IntegerScale(ExponentOf(largest));
  uint64_t sum = 0;
  for (uint32_t c = 0; c < dim; c += 8) {
    uint32_t block = 0;  // at most 8 * 2^28
    for (uint32_t i = c; i < c + 8; ++i) {
      const int32_t v = RoundSmall(x[i] * scale);
      block += static_cast<uint32_t>(v * v);
    }
    sum += block;
  }
  return {largest, sum};
}

static inline void AddMoments(const float* __restrict x, float scale, uint32_t dim,
                              int32_t* __restrict sum, uint32_t* __restrict square) {
  for (uint32_t c = 0; c < dim; ++c) {
    const int32_t v = RoundSmall(x[c] * scale);
    sum[c] += v;
    square[c] += static_cast<uint32_t>(v * v);
  }
}

static inline void AddSixteenths(const ScaledRow& row, int32_t* __restrict sum) {
  if (row.inverse == nullptr) {
    for (uint32_t c = 0; c < row.dim; ++c) {
      sum[c] += RoundClamped(row.x[c] * row.row_inverse * 0.0625f);
    }
    return;
  }
  for (uint32_t c = 0; c < row.dim; ++c) {
    sum[c] += RoundClamped(row.x[c] * row.inverse[c] * 0.0625f);
  }
}

// y - offset, both in units of 2^-8, as whole and fraction; not 0 when one is too large for that.
static inline uint32_t SplitRow(const ScaledRow& row, const float* __restrict offset,
                                int16_t* __restrict whole, int16_t* __restrict fraction) {
  uint32_t beyond = 0;
  for (uint32_t c = 0; c < row.dim; ++c) {
    const float y = row.x[c] * (row.inverse ? row.inverse[c] : row.row_inverse);
    const int32_t z = RoundClamped(y - offset[c]);
    beyond |= (z >= kRoundLimitInteger) | (z <= -kRoundLimitInteger);
    whole[c] = static_cast<int16_t>(z >> 8);
    fraction[c] = static_cast<int16_t>(z & 255);
  }
  return beyond;
}

static inline uint32_t QuantizeRow(const ScaledRow& row, const float* offset, int16_t* q2) {
  int16_t whole[limits::kMaxHeadDim], fraction[limits::kMaxHeadDim];
  const uint32_t beyond = SplitRow(row, offset, whole, fraction);
  if (beyond) return beyond;
  for (uint32_t c = 0; c < row.dim; c += 8) NearestE8(&whole[c], &fraction[c], q2 + c);
  return 0;
}

static inline void AddSquares(const int16_t* __restrict q2, uint32_t dim,
                              uint32_t* __restrict square) {
  for (uint32_t c = 0; c < dim; ++c) square[c] += static_cast<uint32_t>(int32_t{q2[c]} * q2[c]);
}

static inline uint32_t CheckRow(const int16_t* q2, const PointLimits& limits, uint32_t dim,
                                uint32_t* halves) {
  uint32_t out = 0;
  for (uint32_t c = 0; c < dim; c += 8) *halves += static_cast<uint32_t>(q2[c] & 1);
  for (uint32_t c = 0; c < dim; ++c) {
    out |= (q2[c] < limits.low[c]) | (q2[c] > limits.high[c]);
  }
  return out;
}

// The entry of a doubled coordinate in EntropyTables::points.
static inline size_t PointPlace(EncodeCode code, int q2) {
  return (code & 0xFFFF) +
         (static_cast<uint32_t>(q2 >> (code >> kEncodeShiftAt)) & (kPointEntries - 1));
}

static inline uint64_t PointCost(const int16_t* q2, uint32_t rows, uint32_t dim,
                                 const EncodeCode* codes) {
  const uint16_t* costs = Tables().point_costs.data();
  uint64_t cost = 0;
  for (uint32_t r = 0; r < rows; ++r, q2 += dim) {
    for (uint32_t c = 0; c < dim; ++c) cost += costs[PointPlace(codes[c], q2[c])];
  }
  return cost;
}

static inline void RebuildRow(const LatticeRow& row, float* scratch, float* out) {
  // Without a permutation to undo, canonical order is the output's.
  float* __restrict x = row.order == nullptr ? out : scratch;
  for (uint32_t c = 0; c < row.dim; ++c) {
    x[c] =
        static_cast<float>(2 * row.q2[c] + row.mean[c]) * (row.step ? row.step[c] : row.row_step);
  }
  Rotate(row.angle, row.pairs, x);
  if (row.order == nullptr) return;
  for (uint32_t c = 0; c < row.dim; ++c) out[row.order[c]] = x[c];
}

static inline void CastRow(DType dtype, float* x, uint32_t dim) {
  alignas(64) std::byte stored[limits::kMaxHeadDim * sizeof(float)];
  StoreRow(dtype, x, dim, stored);
  LoadRow(dtype, stored, dim, x);
}

// An error in 1/256 step as an integer. The lattice's errors are at most one step; clamping at 16
// keeps the sum of 256 squares within 32 bits.
static inline int32_t RoundError(float units) {
  return static_cast<int16_t>(RoundClamped(units, 4095.0f));
}

static inline void AddErrors(const float* __restrict back, const float* __restrict exact,
                             const float* __restrict inverse, uint32_t dim,
                             uint32_t* __restrict squares) {
  for (uint32_t c = 0; c < dim; ++c) {
    const int32_t e = RoundError((back[c] - exact[c]) * inverse[c]);
    squares[c] += static_cast<uint32_t>(e * e);
  }
}

static inline void AddRelative(const float* back, const float* exact, float inverse, uint32_t dim,
                               uint64_t* error, uint64_t* norm) {
  uint64_t e = 0, v = 0;
  for (uint32_t c = 0; c < dim; c += 8) {
    uint32_t block = 0;
    for (uint32_t i = c; i < c + 8; ++i) {
      const int32_t ei = RoundError((back[i] - exact[i]) * inverse);
      block += static_cast<uint32_t>(ei * ei);
      const int32_t vi = RoundClamped(exact[i] * inverse);
      v += static_cast<uint64_t>(int64_t{vi} * vi);
    }
    e += block;
  }
  *error += e;
  *norm += v;
}

// The row as a decoder will write it, and as it was.
struct RowPair {
  float back[limits::kMaxHeadDim], exact[limits::kMaxHeadDim];
};
static inline void RebuildPair(const MeasuredRow& m, RowPair& out) {
  RebuildRow(m.row, out.exact, out.back);
  CastRow(m.dtype, out.back, m.row.dim);
  LoadRow(m.dtype, m.src, m.row.dim, out.exact);
}

static inline void MeasureErrors(const MeasuredRow& m, const float* inverse, uint32_t* squares) {
  RowPair pair;
  RebuildPair(m, pair);
  AddErrors(pair.back, pair.exact, inverse, m.row.dim, squares);
}

static inline void MeasureRelative(const MeasuredRow& m, float inverse, uint64_t* error,
                                   uint64_t* norm) {
  RowPair pair;
  RebuildPair(m, pair);
  AddRelative(pair.back, pair.exact, inverse, m.row.dim, error, norm);
}

}  // namespace latticekv::row_kernels

#endif  // LATTICEKV_CORE_CODEC_CPU_ROW_KERNELS_H_
