// The codec's inner loops as one table of functions for each instruction set. Every table gives the
// same bytes: kernels_scalar.cc is the specification, the others are compared with it in tests.
// Internal to core/codec.
//
// The files behind the tables are compiled with flags of their own, so they share only functions
// with internal linkage: one inline function that the linker merged could otherwise bring AVX-512
// into the scalar code.
#ifndef LATTICEKV_CORE_CODEC_CPU_KERNELS_H_
#define LATTICEKV_CORE_CODEC_CPU_KERNELS_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "core/codec/codec.h"
#include "core/layout/layout.h"
#include "core/layout/rotary_phase.h"

namespace latticekv {

// One vector to load: `dim` elements of `dtype` at `src`.
struct SourceRow {
  DType dtype;
  const std::byte* src;
  uint32_t dim;
  const uint32_t* order;  // canonical channel -> the layout's; null where they agree
  const SinCos* angle;    // of the token, `pairs` of them
  uint32_t pairs;
};
// What load_row found, or-ed.
inline constexpr uint32_t kRowNotZero = 1;
inline constexpr uint32_t kRowNotFinite = 2;

// Largest magnitude of a vector, as its float's bits, and its energy: the sum of squares of
// RoundSmall(x * scale), each at most 2^14, with the IntegerScale of that magnitude.
struct RowNorm {
  uint32_t largest_bits;
  uint64_t energy;
};

// A vector in canonical order and how it is brought to 1/256 of its steps: x[c] * inverse[c], or,
// where `inverse` is null, x[c] * row_inverse.
struct ScaledRow {
  const float* x;
  const float* inverse;
  float row_inverse;
  uint32_t dim;
};

// One vector to rebuild from twice its lattice points.
struct LatticeRow {
  const int16_t* q2;
  const int32_t* mean;  // quarter steps
  const float* step;    // a quarter of each channel's step; null: row_step for all
  float row_step;
  const uint32_t* order;
  const SinCos* angle;
  uint32_t pairs;
  uint32_t dim;
};

// A vector to rebuild, and the elements of `dtype` that it stands for.
struct MeasuredRow {
  const LatticeRow& row;
  DType dtype;
  const std::byte* src;
};

// Smallest and largest q2 that a channel's table holds, of either coset.
struct PointLimits {
  const int16_t *low, *high;
};

// The vectors of a unit to quantise at once, as ScaledRows.
struct UnitRun {
  const float* x;        // [tokens][dim]
  const uint16_t* rows;  // [count] their tokens
  uint32_t count, dim;   // at most 256
  const float* inverse;  // [dim], or null: row_inverse [count]
  const float* row_inverse;
  const float* offset;  // [dim], as quantize_row subtracts
  int16_t* q2;          // [count][dim]
};
// What is found on the way, by channel.
struct UnitSums {
  int32_t* sixteenths;  // as add_sixteenths; null: not wanted
  uint32_t* squares;    // as add_squares; null: not wanted
  int16_t *low, *high;  // smallest and largest q2, or 0
  uint32_t halves;      // groups in the half coset
};

// How a coordinate is coded: number of the table (of the integer coset where there are no low bits)
// in the low 8 bits, number of low bits above.
using PointCode = uint32_t;
inline constexpr uint32_t kPointLowBitsShift = 8;

// The same for encoding: where its entries in EntropyTables::points begin in the low 16 bits, above
// how far the doubled coordinate is shifted to the right to be the entry (none without low bits).
using EncodeCode = uint32_t;
inline constexpr uint32_t kEncodeShiftAt = 16;

// Rounds of 32 groups of one unit. Word [i * stride + p] of `codes` is coordinate i's code of group
// p mod `groups` of a vector (decoding), of group 31 - p mod `groups` (encoding): the codes of 32
// consecutive groups, forwards or backwards, are then one window.
struct RoundRun {
  const uint32_t* codes;  // PointCode, EncodeCode
  uint32_t stride, groups;
  uint32_t phase;  // the first group's place in its vector
  uint32_t rounds;
  bool any_low_bits;
  uint32_t half_frequency;
  uint32_t* state;  // [32]
};
struct EncodeRun : RoundRun {
  const int16_t* q2;
  uint16_t* out;  // words in the order of encoding; kWordSlack may be written behind the last
};
struct DecodeRun : RoundRun {
  int16_t* q2;
  const std::byte* next;  // kWordSlack words behind `end` may be read
  const std::byte* end;
};
// A round codes at most 32 cosets, 32 * 8 symbols and as many raw bits, a word each.
inline constexpr size_t kWordSlack = 32 * 17 + 32;

struct CpuKernels {
  CodecBackend backend;
  // Elements as floats, un-rotated, in canonical order.
  uint32_t (*load_row)(const SourceRow& row, float* canonical);
  uint32_t (*largest_bits)(const float* x, uint32_t dim);
  RowNorm (*norm)(const float* x, uint32_t dim);
  // Adds RoundSmall(x * scale), at most 2^14, and its square by channel; square[c] holds eight
  // rows.
  void (*add_moments)(const float* x, float scale, uint32_t dim, int32_t* sum, uint32_t* square);
  // sum[c] += sixteenths of steps.
  void (*add_sixteenths)(const ScaledRow& row, int32_t* sum);
  // Nearest lattice points to the vector less `offset`, in 1/256 of steps as well. Not 0: too far
  // away for integers, q2 unspecified.
  uint32_t (*quantize_row)(const ScaledRow& row, const float* offset, int16_t* q2);
  // Nearest points of a unit's vectors; at most one of `sixteenths` and `squares` may be wanted.
  // False: not for such vectors (too far away, dim), nothing is valid, and rows must be quantised
  // one by one. Null where a set has no such kernel, as the next.
  bool (*quantize_unit)(const UnitRun& run, UnitSums& sums);
  // The sixteenths alone.
  bool (*sum_unit)(const UnitRun& run, int32_t* sixteenths);
  // square[c] += q2[c]^2, with |q2| < 2^14; holds eight rows.
  void (*add_squares)(const int16_t* q2, uint32_t dim, uint32_t* square);
  // Not 0: some point is beyond the limits. Adds the number of groups in the half coset.
  uint32_t (*check_row)(const int16_t* q2, const PointLimits& limits, uint32_t dim,
                        uint32_t* halves);
  // Cost of the symbols of contiguous rows in 1/256 bit, low bits left out. `codes` by channel.
  uint64_t (*point_cost)(const int16_t* q2, uint32_t rows, uint32_t dim, const EncodeCode* codes);
  // In the layout's order, rotated. `scratch` has room for a row.
  void (*rebuild_row)(const LatticeRow& row, float* scratch, float* out);
  void (*store_row)(DType dtype, const float* x, uint32_t dim, std::byte* dst);
  // To `dtype` and back.
  void (*cast_row)(DType dtype, float* x, uint32_t dim);
  // squares[c] += squared error times inverse[c]^2, which takes it to 1/256 step of the channel;
  // holds 256 rows.
  void (*add_errors)(const float* back, const float* exact, const float* inverse, uint32_t dim,
                     uint32_t* squares);
  // Adds squared error and squared norm, both taken to 1/256 step by `inverse`.
  void (*add_relative)(const float* back, const float* exact, float inverse, uint32_t dim,
                       uint64_t* error, uint64_t* norm);
  // rebuild_row, cast_row and add_errors, or add_relative, at once.
  void (*measure_errors)(const MeasuredRow& row, const float* inverse, uint32_t* squares);
  void (*measure_relative)(const MeasuredRow& row, float inverse, uint64_t* error, uint64_t* norm);
  void (*encode_rounds)(EncodeRun& run);
  // Stops behind `end`, which is then below `next`.
  void (*decode_rounds)(DecodeRun& run);
};

extern const CpuKernels kScalarKernels;
#if defined(LKV_X86_KERNELS)
extern const CpuKernels kAvx2Kernels;
extern const CpuKernels kAvx512Kernels;
#endif

// The table for `backend`. kAuto: the one that LATTICEKV_CPU_LEVEL names, else the best that the
// processor has. FAILED_PRECONDITION for one that it lacks, INVALID_ARGUMENT for a wrong
// LATTICEKV_CPU_LEVEL.
absl::StatusOr<const CpuKernels*> KernelsFor(CodecBackend backend);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CPU_KERNELS_H_
