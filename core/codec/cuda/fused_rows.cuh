// Rows of a unit in the common case, lean: 16-bit elements, whole slices of a row in one lane, steps
// known beforehand. Everything between loading a row and its measured error happens in registers.
// Gives the results of unit_passes.cuh bit for bit. Internal to core/codec/cuda.
//
// Scaling by powers of two is exact, and so is an integer in the low bits of 1.5 * 2^23 + integer:
// steps come multiplied by 256, means by 64, and numbers stay in that form as long as they can.
#ifndef LATTICEKV_CORE_CODEC_CUDA_FUSED_ROWS_CUH_
#define LATTICEKV_CORE_CODEC_CUDA_FUSED_ROWS_CUH_

#include "core/codec/cuda/encode_kernels.h"
#include "core/codec/cuda/unit_choice.cuh"

namespace latticekv::cuda {
namespace {

__device__ const EncodeConstants kConstants = MakeEncodeConstants();
__device__ const float4 kNoTurn[4] = {{1, 0, 1, 0}, {1, 0, 1, 0}, {1, 0, 1, 0}, {1, 0, 1, 0}};
extern __shared__ __align__(16) unsigned char channel_bytes[];

constexpr float kMagic = 12582912.0f;  // its bits are kMagicBits

// Channel constants in the order in which lanes read them: [quad of the slice][slice].
struct SliceConstants {
  float4* inverse;  // 256 / step
  float4* offset;   // 64 * mean
  float4* step;     // step / 256
  float4* bound;    // largest |q2|; negative where low bits are raw, and minus it is no point then
  // Where points are costed as they are found: the cost of 0 in the channel's table of integers, as
  // an index into EncodeConstants::cost, and raw low bits << 16; and a copy of those costs.
  uint4* code = nullptr;
  uint16_t* costs = nullptr;
  __device__ SliceConstants(unsigned char* at, uint32_t dim) {
    inverse = reinterpret_cast<float4*>(at);
    offset = inverse + dim / 4;
    step = offset + dim / 4;
    bound = step + dim / 4;
  }
  static constexpr uint32_t Bytes(uint32_t dim) { return 16 * dim; }
  // With code and costs; copies these. A barrier must follow.
  static constexpr uint32_t BytesWithCosts(uint32_t dim) {
    return Bytes(dim) + 4 * dim + sizeof(EncodeConstants::cost);
  }
  __device__ void AddCosts(const EncodeConstants& constants, uint32_t dim) {
    code = reinterpret_cast<uint4*>(bound + dim / 4);
    costs = reinterpret_cast<uint16_t*>(code + dim / 4);
    for (uint32_t i = threadIdx.x; i < kTableIds * kSymbolSpan; i += kUnitThreads) {
      costs[i] = (&constants.cost[0][0])[i];
    }
  }
};

template <bool kBf16>
__device__ void Unpack(uint4 v, float* out) {
  const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (kBf16) {
      out[2 * i] = __uint_as_float(w[i] << 16);
      out[2 * i + 1] = __uint_as_float(w[i] & 0xFFFF0000u);
    } else {
      const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&w[i]));
      out[2 * i] = pair.x;
      out[2 * i + 1] = pair.y;
    }
  }
}

// Makes the compiler work out anew what it made of `v`.
__device__ void Forget(uint4& v) { asm("" : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)); }

// To the dtype and back, two at a time.
template <bool kBf16>
__device__ void ThroughDtypePair(float& a, float& b) {
  if constexpr (kBf16) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
    const uint32_t w = *reinterpret_cast<const uint32_t*>(&pair);
    a = __uint_as_float(w << 16);
    b = __uint_as_float(w & 0xFFFF0000u);
  } else {
    const uint32_t w = PackHalves(a, b);
    const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&w));
    a = pair.x;
    b = pair.y;
  }
}

__device__ float Part(const float4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// kByChannel: steps are the channels' own, and so are sums of errors; else they are the rows'. So
// are those of keys whose channels all have the same.
template <bool kKey, bool kBf16, bool kByChannel = kKey>
class FusedRows {
 public:
  // `row_at` is where rows begin, counted from the head's first element.
  __device__ FusedRows(const EncodeLaunch& launch, const EncodeUnit& u, UnitShared& shared,
                       const SliceConstants& constants, const uint64_t* row_at)
      : arena_(launch.arena_dev), u_(u), shared_(shared), c_(constants), row_at_(row_at) {
    lanes_ = u.row_lanes;
    sub_ = threadIdx.x % lanes_;
    tokens_ = u.tokens;
    active_ = sub_ < u.slices;
    slice_.MoveTo(u, active_ ? sub_ : 0);
    woven_ = kKey && u.interleaved && slice_.rotated;
    const uint32_t first = woven_ ? 2 * slice_.channel[0] : slice_.channel[0];
    low_ = reinterpret_cast<const unsigned char*>(u.src) + 2 * first;
    high_ = 2 * (woven_ ? 8 : slice_.channel[1] - slice_.channel[0]);
    if (kKey && slice_.rotated) {
      angles_ = arena_ + u.rope_at + sizeof(float2) * slice_.channel[0];
      angle_stride_ = sizeof(float2) * u.pairs;
    }
  }

  // Steps of values from their norms, and which of them have to be raw; ends with a barrier.
  __device__ void FindSteps(int value_unit_16) {
    ForEachRow([&](uint32_t t, const Words& words) { AddEnergy(t, words); });
    __syncthreads();
    const uint32_t t = threadIdx.x;
    if (t < tokens_) {
      const uint64_t energy = shared_.row_square[t];
      const int exponent = ExponentOfBits(static_cast<uint32_t>(shared_.row_error[t]));
      const int log_32 = 2 * value_unit_16 + Log2Sixteenths(kConstants, energy > 0 ? energy : 1) -
                         Log2Sixteenths(kConstants, u_.dim) + 32 * (ScaledExponent(exponent) - 14);
      const bool raw =
          energy == 0 || shared_.row_error[t] >= 0x7F800000 || shared_.given_raw[t] != 0;
      shared_.given_raw[t] = raw;
      shared_.row_step[t] = raw ? 0 : ClampStep((log_32 + 4) >> 3);
    }
    __syncthreads();
  }

  // Of keys: marks the rows that have to be raw, and the bits of the others' largest number into
  // shared.largest. A barrier must follow.
  __device__ void FindLargest() {
    uint32_t largest = 0;
    ForEachRow([&](uint32_t t, const Words& words) {
      float y[16];
      float row_inverse = 1, row_step = 1;
      bool raw = StartRow<false>(t, words, y, row_inverse, row_step);
      raw = MarkNotFinite(t, y, raw);
      if (raw || !active_) return;
#pragma unroll
      for (int i = 0; i < 16; ++i) largest = max(largest, __float_as_uint(fabsf(y[i])));
    });
    PublishAny();
    largest = __reduce_max_sync(kEveryLane, largest);
    if (threadIdx.x % 32 == 0) atomicMax(&shared_.largest, largest);
  }

  // The lane's channels' sums, or sums of squares, for the spread of keys, at most eight rows a lane.
  template <bool kSquares>
  __device__ void AddSpread(uint32_t (&sums)[16]) {
    const float scale = IntegerScale(ExponentOfBits(shared_.largest));
    ForEachRow([&](uint32_t t, const Words& words) {
      float y[16];
      float row_inverse = 1, row_step = 1;
      if (StartRow<false>(t, words, y, row_inverse, row_step) || !active_) return;
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const auto v = static_cast<uint32_t>(RoundSmall(__fmul_rn(y[i], scale)));
        sums[i] += kSquares ? v * v : v;
      }
    });
  }

  // The lane's channels' sums for own means, in 1/16 step; marks keys' rows that have to be raw.
  // Needs the constants' inverse.
  __device__ void AddMeans(uint32_t (&sums)[16]) {
    ForEachRow([&](uint32_t t, const Words& words) {
      float y[16];
      float row_inverse = 1, row_step = 1;
      bool raw = StartRow<false>(t, words, y, row_inverse, row_step);
      if (kKey) raw = MarkNotFinite(t, y, raw);
      if (raw || !active_) return;
#pragma unroll
      for (int quad = 0; quad < 4; ++quad) {
        float4 inverse = {row_inverse, row_inverse, row_inverse, row_inverse};
        if constexpr (kByChannel) inverse = c_.inverse[quad * u_.slices + sub_];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int n = 4 * quad + i;
          sums[n] += static_cast<uint32_t>(
              RoundClamped(__fmul_rn(__fmul_rn(y[n], Part(inverse, i)), 0.0625f)));
        }
      }
    });
    PublishAny();
  }

  // The lane's channels' sums of squared points for own spreads, at most eight rows a lane; vectors
  // too far away become raw. Needs the constants' inverse and offset.
  __device__ void AddSquares(uint32_t (&sums)[16]) {
    ForEachRow([&](uint32_t t, const Words& words) {
      float y[16];
      float row_inverse = 1, row_step = 1;
      bool raw = StartRow<false>(t, words, y, row_inverse, row_step);
      uint32_t q2[16];
      const bool too_far = RowAny(IsTooFar(Quantise(y, row_inverse, q2)), lanes_);
      if (too_far && !raw) {
        raw = true;
        if (sub_ == 0) shared_.raw[t] = 1;
      }
      if (raw || !active_) return;
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const uint32_t q = q2[i] - kMagicBits;
        sums[i] += q * q;
      }
    });
  }

  // Lattice points into scratch, outliers marked, squared errors: the lane's channels' of keys into
  // `sums`, rows' of values. kMark: also marks the rows that have to be raw; else the marks are
  // shared.raw and outliers are counted.
  template <bool kMark>
  __device__ void Run(bool low_bits, uint32_t (&sums)[16]) {
    low_bits_ = low_bits;
    halves_ = cost_ = 0;
    ForEachRow([&](uint32_t t, const Words& words) { Row<kMark>(t, words, sums); });
    PublishAny();
    const uint32_t halves = __reduce_add_sync(kEveryLane, halves_);
    if (threadIdx.x % 32 == 0) atomicAdd(&shared_.halves, halves);
  }

  // Of the lane's points in the last Run, in 1/256 bit, cosets left out; with the constants' costs.
  __device__ uint32_t cost() const { return cost_; }

  // Adds the lanes' sums to those of their channels; a barrier must follow.
  __device__ void AddTo(uint32_t* of_channels, const uint32_t (&sums)[16]) const {
    if (!active_) return;
#pragma unroll
    for (int i = 0; i < 16; ++i) atomicAdd(&of_channels[slice_.Channel(i)], sums[i]);
  }
  __device__ void AddTo(unsigned long long* of_channels, const uint32_t (&sums)[16]) const {
    if (!active_) return;
#pragma unroll
    for (int i = 0; i < 16; ++i) AddShared(&of_channels[slice_.Channel(i)], sums[i]);
  }

 private:
  // A lane's slice of a row as it lies in memory.
  struct Words {
    uint4 low = {0, 0, 0, 0}, high = {0, 0, 0, 0};
  };

  // Calls f(t, words) for the lane's rows; the next row is on its way meanwhile.
  template <typename F>
  __device__ void ForEachRow(F f) {
    const uint32_t rows = kUnitThreads / lanes_;
    uint32_t t = threadIdx.x / lanes_;
    Words next = Load(t);
    for (uint32_t at = 0; at < tokens_; at += rows, t += rows) {
      const Words words = next;
      next = Load(t + rows);
      f(t, words);
    }
  }

  __device__ void PublishAny() {
    if (__any_sync(kEveryLane, any_ != 0) && threadIdx.x % 32 == 0) shared_.any = 1;
  }

  __device__ static bool AllFinite(const float (&y)[16]) {
    float zero = 0;  // stays so unless some number is not finite
#pragma unroll
    for (int i = 0; i < 16; ++i) zero = __fmaf_rn(y[i], 0.0f, zero);
    return zero == 0.0f;
  }
  // As large as rounds to the limit.
  __device__ static bool IsTooFar(float largest) { return largest >= kRoundLimitInteger - 0.5f; }

  // Marks rows of keys that have to be raw; returns whether this one is.
  __device__ bool MarkNotFinite(uint32_t t, const float (&y)[16], bool raw) {
    if (!RowAny(!AllFinite(y), lanes_) || raw) return raw;
    if (sub_ == 0) shared_.given_raw[t] = shared_.raw[t] = 1;
    return true;
  }

  // The slice's numbers before rotary embedding, and steps that are the row's. Returns whether the row is
  // raw so far.
  template <bool kMark>
  __device__ bool StartRow(uint32_t t, const Words& words, float (&y)[16], float& row_inverse,
                           float& row_step) {
    ToFloats(words, y);
    bool raw = t >= tokens_;
    if constexpr (kKey) {
      Unrotate(t, y);
      if constexpr (kMark) {
        // Values' rows that have other numbers are raw by now.
        raw = RowAny(!AllFinite(y), lanes_) || raw;
        if (!raw) raw = shared_.given_raw[t] != 0;
        __syncwarp();
        if (t < tokens_ && sub_ == 0) shared_.given_raw[t] = raw;
      } else if (!raw) {
        raw = shared_.raw[t];
      }
      if constexpr (!kByChannel) row_inverse = c_.inverse[0].x, row_step = c_.step[0].x;
    } else if (t < tokens_) {
      raw = kMark ? shared_.given_raw[t] : shared_.raw[t];
      const int step = shared_.row_step[t];
      row_inverse = 256.0f * StepFloat(-step);
      row_step = 0.00390625f * StepFloat(step);
    }
    if constexpr (!kMark) __syncwarp();  // every lane has read the mark that may be set now
    return raw;
  }

  template <bool kMark>
  __device__ void Row(uint32_t t, const Words& words, uint32_t (&sums)[16]) {
    const bool valid = active_ && t < tokens_;
    float y[16];
    float row_inverse = 1, row_step = 1;
    bool raw = StartRow<kMark>(t, words, y, row_inverse, row_step);
    uint32_t q2[16];
    raw = RowAny(IsTooFar(Quantise(y, row_inverse, q2)), lanes_) || raw;
    if (valid && !raw) Store(t, q2);
    uint32_t cost = 0;
    if (!kMark && c_.costs != nullptr) cost = low_bits_ ? CostOf<true>(q2) : CostOf<false>(q2);
    bool out = false;
    float number[16];
    Rebuild(q2, row_step, number, out);
    const bool marks = RowAny(out && active_ && !raw, lanes_);
    if (!kMark && marks && sub_ == 0) atomicAdd(&shared_.marked, 1);
    raw |= marks;
    if (t < tokens_ && sub_ == 0) shared_.raw[t] = raw;
    if constexpr (kKey) Rotate(t, number);
    if (!raw && active_) {
      halves_ += (q2[0] & 1) + (q2[8] & 1);
      cost_ += cost;
    }
    Measure(t, raw || !active_, words, number, row_inverse, sums);
  }

  // A row's sum of squares as integers, and the bits of its largest number, into shared memory.
  __device__ void AddEnergy(uint32_t t, const Words& words) {
    float x[16];
    ToFloats(words, x);
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < 16; ++i) most = max(most, __float_as_uint(fabsf(x[i])));
    most = RowReduce(most, lanes_, [](uint32_t a, uint32_t b) { return max(a, b); });
    const float scale = IntegerScale(ExponentOfBits(most));
    uint32_t part[2] = {0, 0};  // eight squares of at most 2^28 each
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      // The product is exact: rounded once, as in two steps.
      const uint32_t v = __float_as_uint(__fmaf_rn(fabsf(x[i]), scale, kMagic)) & 0x3FFFFF;
      part[i / 8] += v * v;
    }
    unsigned long long energy = static_cast<unsigned long long>(part[0]) + part[1];
    energy = RowReduce(energy, lanes_, [](auto a, auto b) { return a + b; });
    if (t >= tokens_ || sub_ != 0) return;
    shared_.row_square[t] = energy;
    shared_.row_error[t] = most;
  }

  __device__ Words Load(uint32_t t) {
    Words words;
    if (!active_ || t >= tokens_) return words;
    const unsigned char* row = low_ + row_at_[t];
    words.low = *reinterpret_cast<const uint4*>(row);
    words.high = *reinterpret_cast<const uint4*>(row + high_);
    return words;
  }

  // The slice's numbers in canonical order.
  __device__ void ToFloats(const Words& words, float (&x)[16]) {
    const uint4 &a = words.low, &b = words.high;
    any_ |= a.x | a.y | a.z | a.w | b.x | b.y | b.z | b.w;
    Unpack<kBf16>(a, x);
    Unpack<kBf16>(b, x + 8);
    if constexpr (kKey) {
      if (!woven_) return;
      float in[16];
#pragma unroll
      for (int i = 0; i < 16; ++i) in[i] = x[i];
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] = in[2 * i], x[8 + i] = in[2 * i + 1];
    }
  }

  // Slices that are not rotated turn by nothing: that may change the sign of a zero, which no
  // integer made of it shows.
  __device__ void LoadAngles(uint32_t t, float2 (&angle)[8]) {
    const float4* from = reinterpret_cast<const float4*>(
        angles_ + (t < tokens_ ? size_t{t} * angle_stride_ : size_t{0}));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 two = from[i];
      angle[2 * i] = {two.x, two.y};
      angle[2 * i + 1] = {two.z, two.w};
    }
  }
  __device__ void Unrotate(uint32_t t, float (&y)[16]) {
    float2 angle[8];
    LoadAngles(t, angle);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float a = y[i], b = y[8 + i];
      y[i] = __fadd_rn(__fmul_rn(a, angle[i].x), __fmul_rn(b, angle[i].y));
      y[8 + i] = __fsub_rn(__fmul_rn(b, angle[i].x), __fmul_rn(a, angle[i].y));
    }
  }

  // Returns the largest number before rounding.
  __device__ float Quantise(const float (&y)[16], float row_inverse, uint32_t* q2) {
    float largest = 0;
    const uint32_t slice = active_ ? sub_ : 0;
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      uint32_t bits[8];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint32_t at = (2 * g + h) * u_.slices + slice;
        float4 inverse = {row_inverse, row_inverse, row_inverse, row_inverse};
        if constexpr (kByChannel) inverse = c_.inverse[at];
        const float4 offset = c_.offset[at];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float v =
              __fsub_rn(__fmul_rn(y[8 * g + 4 * h + i], Part(inverse, i)), Part(offset, i));
          largest = fmaxf(largest, fabsf(v));
          bits[4 * h + i] = __float_as_uint(__fadd_rn(v, kMagic));
        }
      }
      NearestPoint(bits, q2 + 8 * g);
    }
    return active_ ? largest : 0;
  }

  // UnitChoice::PointCost of the slice; points beyond their tables may cost anything.
  template <bool kLowBits>
  __device__ uint32_t CostOf(const uint32_t (&q2)[16]) const {
    uint32_t cost = 0;
#pragma unroll
    for (int quad = 0; quad < 4; ++quad) {
      const uint4 codes = c_.code[quad * u_.slices + (active_ ? sub_ : 0)];
      const uint32_t code[4] = {codes.x, codes.y, codes.z, codes.w};
      const int half = static_cast<int>(q2[quad / 2 * 8] & 1);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int k = static_cast<int>(q2[4 * quad + i] - kMagicBits) >> 1;
        const int low = kLowBits ? static_cast<int>(code[i] >> 16) : 0;
        const bool last = quad % 2 == 1 && i == 3;
        int id = half || low > 0 ? 3 : 0;
        if (last && low == 0) id += kEven + (k & 1);
        const int symbol = ClampValue(k >> low, -kSymbolOffset, kSymbolOffset);
        cost += c_.costs[static_cast<int>(code[i] & 0xFFFF) + id * kSymbolSpan + symbol];
        if (kLowBits && low > 0) cost += 256u * static_cast<uint32_t>(low - last);
      }
    }
    return cost;
  }

  __device__ void Store(uint32_t t, const uint32_t (&q2)[16]) {
    int16_t* to = reinterpret_cast<int16_t*>(arena_ + u_.q2_at) + size_t{t} * u_.dim;
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      uint32_t w[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        w[i] = __byte_perm(q2[8 * g + 2 * i], q2[8 * g + 2 * i + 1], 0x5410);
      }
      *reinterpret_cast<uint4*>(to + slice_.channel[g]) = {w[0], w[1], w[2], w[3]};
    }
  }

  // Numbers before rotation; `out` when some point is beyond its table.
  __device__ void Rebuild(const uint32_t (&q2)[16], float row_step, float (&number)[16],
                          bool& out) {
    const uint32_t slice = active_ ? sub_ : 0;
#pragma unroll
    for (int quad = 0; quad < 4; ++quad) {
      const uint32_t at = quad * u_.slices + slice;
      const float4 offset = c_.offset[at], bound = c_.bound[at];
      float4 step = {row_step, row_step, row_step, row_step};
      if constexpr (kByChannel) step = c_.step[at];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float q = __fsub_rn(__uint_as_float(q2[4 * quad + i]), kMagic);
        out |= fabsf(q) > fabsf(Part(bound, i));
        number[4 * quad + i] = __fmul_rn(__fmaf_rn(q, 128.0f, Part(offset, i)), Part(step, i));
      }
    }
    if (!low_bits_) return;
    // Halves of two's complement: the largest point of a channel with raw low bits has no twin.
#pragma unroll
    for (int quad = 0; quad < 4; ++quad) {
      const float4 bound = c_.bound[quad * u_.slices + slice];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float q = __fsub_rn(__uint_as_float(q2[4 * quad + i]), kMagic);
        out |= q > 0 && q == -Part(bound, i);
      }
    }
  }

  // Angles are read again: they lie in the first-level cache, and registers are scarcer.
  __device__ void Rotate(uint32_t t, float (&number)[16]) {
    float2 angle[8];
    LoadAngles(t, angle);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float a = number[i], b = number[8 + i];
      number[i] = __fsub_rn(__fmul_rn(a, angle[i].x), __fmul_rn(b, angle[i].y));
      number[8 + i] = __fadd_rn(__fmul_rn(b, angle[i].x), __fmul_rn(a, angle[i].y));
    }
  }

  __device__ void Measure(uint32_t t, bool skip, Words words, float (&number)[16],
                          float row_inverse, uint32_t (&sums)[16]) {
    const uint32_t slice = active_ ? sub_ : 0;
    // Unpacked once more, so that 8 registers and not 16 hold the row until here.
    Forget(words.low);
    Forget(words.high);
    float x[16];
    ToFloats(words, x);
    uint32_t error[2] = {0, 0};
#pragma unroll
    for (int quad = 0; quad < 4; ++quad) {
      float4 inverse = {row_inverse, row_inverse, row_inverse, row_inverse};
      if constexpr (kByChannel) inverse = c_.inverse[quad * u_.slices + slice];
      ThroughDtypePair<kBf16>(number[4 * quad], number[4 * quad + 1]);
      ThroughDtypePair<kBf16>(number[4 * quad + 2], number[4 * quad + 3]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int n = 4 * quad + i;
        const float e = __fmul_rn(__fsub_rn(number[n], x[n]), Part(inverse, i));
        const uint32_t bits = __float_as_uint(__fadd_rn(fminf(fabsf(e), 4095.0f), kMagic)) & 0xFFFF;
        if constexpr (kByChannel) {
          if (!skip) sums[n] += bits * bits;
        } else {
          error[quad / 2] += bits * bits;
        }
      }
    }
    if constexpr (!kByChannel) {
      const auto add = [](auto a, auto b) { return a + b; };
      unsigned long long both = active_ ? static_cast<unsigned long long>(error[0]) + error[1] : 0;
      both = RowReduce(both, lanes_, add);
      const unsigned long long square =
          RowReduce(active_ ? Square(x, row_inverse) : 0, lanes_, add);
      if (!skip && sub_ == 0) {
        shared_.row_error[t] = both;
        shared_.row_square[t] = square;
      }
    }
  }

  // Sum of squares of the numbers in 1/256 step, rounded. Small ones fit 32 bits together.
  __device__ unsigned long long Square(const float (&x)[16], float row_inverse) const {
    uint32_t small = 0;
    float largest = 0;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float v = fabsf(__fmul_rn(x[i], row_inverse));
      largest = fmaxf(largest, v);
      const uint32_t value = __float_as_uint(__fadd_rn(v, kMagic)) & 0x3FFFFF;
      small += value * value;
    }
    if (largest < 16383.0f) return small;
    unsigned long long square = 0;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float v = fminf(fabsf(__fmul_rn(x[i], row_inverse)), kRoundLimitInteger);
      const uint32_t value = __float_as_uint(__fadd_rn(v, kMagic)) & 0x3FFFFF;
      square += static_cast<unsigned long long>(value) * value;
    }
    return square;
  }

  unsigned char* arena_;
  const EncodeUnit& u_;
  UnitShared& shared_;
  const SliceConstants& c_;
  const uint64_t* row_at_;
  bool low_bits_ = false;  // of some channel; the same for the whole block
  Slice<true> slice_;
  uint32_t lanes_, sub_, tokens_;
  bool active_, woven_;
  const unsigned char* low_;  // of token 0: the slice's first eight elements
  uint32_t high_;             // bytes from there to the others
  const unsigned char* angles_ = reinterpret_cast<const unsigned char*>(kNoTurn);  // of token 0
  uint32_t angle_stride_ = 0;
  uint32_t any_ = 0, halves_ = 0, cost_ = 0;
};

// What a block of a fused kernel keeps of its unit beside UnitShared.
struct FusedUnit {
  EncodeUnit unit;
  uint64_t row_at[kMaxRows];
};

// Reads unit `blockIdx.x` of a list; ends with a barrier.
__device__ void StartFused(const EncodeLaunch& launch, uint64_t list_at, FusedUnit& fused,
                           UnitShared& shared) {
  const unsigned char* arena = launch.arena_dev;
  EncodeUnit& unit = fused.unit;
  if (threadIdx.x == 0) {
    const uint32_t index = reinterpret_cast<const uint32_t*>(arena + list_at)[blockIdx.x];
    unit = reinterpret_cast<const EncodeUnit*>(arena + launch.units_at)[index];
    shared.any = shared.largest = 0;
  }
  __syncthreads();
  if (threadIdx.x < unit.tokens) {
    const TokenPlace place =
        reinterpret_cast<const TokenPlace*>(arena + unit.places_at)[threadIdx.x];
    fused.row_at[threadIdx.x] = place.block * unit.block_stride + place.slot * unit.token_stride;
    shared.given_raw[threadIdx.x] = arena[unit.asked_at + threadIdx.x];
  }
  __syncthreads();
}

// Leaves the unit to the kernels of unit_kernel.cuh.
__device__ void LeaveUnit(const EncodeLaunch& launch, const EncodeUnit& unit) {
  if (threadIdx.x != 0) return;
  reinterpret_cast<UnitResult*>(launch.arena_dev + unit.result_at)->pending = 1;
  reinterpret_cast<uint32_t*>(launch.arena_dev + launch.counter_at)[1] = 1;
}

// Enqueues a fused kernel over list `list`, with `constant_bytes` for SliceConstants.
template <typename Kernel>
cudaError_t LaunchFusedList(Kernel kernel, const EncodeLaunch& launch, int list,
                            uint32_t constant_bytes, cudaStream_t stream) {
  if (launch.fused_lists[list] == 0) return cudaSuccess;
  const int bytes = static_cast<int>(ChannelArrayBytes(launch.max_dim) + constant_bytes);
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  kernel<<<launch.fused_lists[list], kUnitThreads, bytes, stream>>>(launch,
                                                                    launch.fused_lists_at[list]);
  return cudaGetLastError();
}

// The channels' constants out of `channels`. True when some channel has raw low bits.
__device__ bool FillSlices(const EncodeUnit& u, const ChannelArrays& channels,
                           const SliceConstants& out) {
  int low_bits = 0;
  for (uint32_t n = threadIdx.x; n < u.dim; n += kUnitThreads) {
    Slice<true> slice;
    const uint32_t j = n / 16, i = n % 16;
    slice.MoveTo(u, j);
    const uint32_t c = slice.Channel(static_cast<int>(i));
    const uint32_t at = 4 * ((i / 4) * u.slices + j) + i % 4;
    reinterpret_cast<float*>(out.inverse)[at] = channels.inverse[c];
    reinterpret_cast<float*>(out.offset)[at] = channels.offset[c];
    reinterpret_cast<float*>(out.step)[at] = 0.015625f * channels.step[c];
    const uint32_t bound = channels.bound[c];
    const bool low = (bound >> 16) != 2 * (bound & 0xFFFF);
    const float largest = static_cast<float>(bound & 0xFFFF);
    reinterpret_cast<float*>(out.bound)[at] = low ? -largest : largest;
    low_bits |= low;
    if (out.costs == nullptr) continue;
    const SigmaCode code = SigmaCodeOf(channels.sigma[c]);
    reinterpret_cast<uint32_t*>(out.code)[at] =
        static_cast<uint32_t>(TableId(code.spread, 0, kAll) * kSymbolSpan + kSymbolOffset) |
        uint32_t{code.low_bits} << 16;
  }
  return __syncthreads_or(low_bits) != 0;
}

}  // namespace
}  // namespace latticekv::cuda

#endif  // LATTICEKV_CORE_CODEC_CUDA_FUSED_ROWS_CUH_
