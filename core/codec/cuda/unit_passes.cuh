// Passes of a block over the rows of one unit: load, steps, means, lattice points, outliers,
// errors.
// The scalar originals are core/codec/cpu/unit_encoder.cc, step_planner.cc and quantizer.cc.
#ifndef LATTICEKV_CORE_CODEC_CUDA_UNIT_PASSES_CUH_
#define LATTICEKV_CORE_CODEC_CUDA_UNIT_PASSES_CUH_

#include "core/codec/cuda/encode_constants.cuh"
#include "core/codec/cuda/row_slice.cuh"

namespace latticekv::cuda {

inline constexpr uint32_t kEveryLane = 0xFFFFFFFFu;
inline constexpr uint32_t kUnitThreads = 256;
inline constexpr int kMaxRows = 256;

// A block's working memory. Arrays of channels lie behind it.
struct UnitShared {
  uint8_t given_raw[kMaxRows];  // before quantising
  uint8_t raw[kMaxRows];
  int16_t row_step[kMaxRows];  // values
  unsigned long long row_error[kMaxRows], row_square[kMaxRows];
  unsigned long long total;
  uint32_t largest;  // bits, over the rows not raw
  uint32_t any;      // not zero: some element is not +0
  uint32_t halves, marked, coded;
  uint64_t side_cost[3], side_best[3][kUnitThreads / 32];
  int16_t key_base;
  UnitResult result;
};
// Arrays [dim] of the block, at fixed places for a dim.
struct ChannelArrays {
  unsigned long long* sum64;
  float* inverse;   // 256 / step; of keys
  float* offset;    // 64 * mean: quarter steps in 1/256 step
  float* step;      // step / 4; of keys
  int32_t* mean;    // quarter steps
  uint32_t* bound;  // H | (2H or 2H - 1) << 16: points q2 with -H <= q2 <= that - H are coded
  uint32_t* sum32;
  int16_t* sigma;
  int32_t* values[3];  // sent: steps, means, sigmas
  __device__ ChannelArrays(unsigned char* at, uint32_t dim) {
    sum64 = reinterpret_cast<unsigned long long*>(at);
    inverse = reinterpret_cast<float*>(sum64 + dim);
    offset = inverse + dim;
    step = offset + dim;
    mean = reinterpret_cast<int32_t*>(step + dim);
    bound = reinterpret_cast<uint32_t*>(mean + dim);
    sum32 = bound + dim;
    values[0] = reinterpret_cast<int32_t*>(sum32 + dim);
    values[1] = values[0] + StepRoom(dim);
    values[2] = values[1] + dim;
    sigma = reinterpret_cast<int16_t*>(values[2] + dim);
  }
};
constexpr uint32_t ChannelArrayBytes(uint32_t dim) {
  return dim * (8 + 6 * 4 + 2 * 4 + 2) + 4 * StepRoom(dim);
}

enum PassFlag : int {
  kPassLoad = 1,      // marks raw vectors, finds steps of values
  kPassSpread = 2,    // sums for the spread of keys without query energy
  kPassMeans = 4,     // sums for own means
  kPassQuantise = 8,  // lattice points into scratch; vectors too far away become raw
  kPassSquares = 16,  // with kPassQuantise: sums for own sigmas
  kPassCheck = 32,    // marks outliers, counts half cosets
  kPassMeasure = 64,  // squared errors of what a decoder will give
};

// Reductions over the `lanes` lanes of a row.
template <typename T, typename Operation>
__device__ T RowReduce(T v, uint32_t lanes, Operation operation) {
  for (uint32_t o = lanes / 2; o > 0; o >>= 1) v = operation(v, __shfl_xor_sync(kEveryLane, v, o));
  return v;
}
__device__ inline bool RowAny(bool v, uint32_t lanes) {
  const uint32_t votes = __ballot_sync(kEveryLane, v);
  const uint32_t lane = threadIdx.x % 32, first = lane & ~(lanes - 1);
  return lanes == 32 ? votes != 0 : (votes >> first & ((1u << lanes) - 1)) != 0;
}

// Adds to a sum in shared memory. The hardware has no 64-bit addition there and would loop until no
// other thread comes between, so halves are added apart.
__device__ inline void AddShared(unsigned long long* sum, unsigned long long v) {
  uint32_t* halves = reinterpret_cast<uint32_t*>(sum);
  const uint32_t low = static_cast<uint32_t>(v);
  const bool carry = atomicAdd(halves, low) + low < low;
  const uint32_t high = static_cast<uint32_t>(v >> 32) + carry;
  if (high != 0) atomicAdd(halves + 1, high);
}

// The bits of 1.5 * 2^23, which plus an integer are the bits of the float that much larger.
inline constexpr uint32_t kMagicBits = 0x4B400000u;

// Nearest point of E8 to z / 256, as NearestE8 of core/codec/cpu/e8.h: takes z + kMagicBits and
// gives twice the point + kMagicBits. Two coordinates share a register where 16 bits hold them.
__device__ inline void NearestPoint(const uint32_t (&b)[8], uint32_t* q2) {
  // Of a coordinate: 16 * its distance to the nearest integer in 1/256, twice its place (backwards
  // where the largest is looked for), and whether that integer is the upper one.
  uint32_t largest = 0, smallest = ~0u, sums = 0, bits = 0;
#pragma unroll
  for (uint32_t i = 0; i < 8; i += 2) {
    const uint32_t fraction = PackLowestBytes(b[i], b[i + 1]);
    const uint32_t distance = __vminu2(fraction, 0x01000100u - fraction);
    const uint32_t key = 16 * distance + (fraction >> 7 & 0x00010001u);
    sums += distance;
    bits ^= b[i] ^ b[i + 1];
    largest = __viaddmax_u16x2(key, 2 * (7 - i) | 2 * (6 - i) << 16, largest);
    smallest = __viaddmin_u16x2(key, 2 * i | 2 * (i + 1) << 16, smallest);
  }
  largest = max(largest & 0xFFFF, largest >> 16);
  smallest = min(smallest & 0xFFFF, smallest >> 16);
  const int sum = static_cast<int>((sums & 0xFFFF) + (sums >> 16));
  // Rounding up changes the parity of the integer below.
  const int odd_half = bits >> 8 & 1, odd_whole = odd_half ^ (bits >> 7 & 1);
  const int difference = 131072 - 256 * sum + odd_half * 512 * static_cast<int>(smallest >> 4) -
                         odd_whole * (65536 - 512 * static_cast<int>(largest >> 4));
  const bool half = difference < 0;
  const uint32_t moved = half ? smallest : largest ^ 14;
  const uint32_t at = (half ? odd_half : odd_whole) ? moved >> 1 & 7 : 8;
  const uint32_t move = (moved & 1) == half ? 2u : static_cast<uint32_t>(-2);
  const uint32_t rounding = half ? 0 : 128;
  // 2 * ((b >> 8) - (kMagicBits >> 8)) + half + kMagicBits.
  const uint32_t base = kMagicBits - 2 * (kMagicBits >> 8) + half;
#pragma unroll
  for (uint32_t i = 0; i < 8; ++i) {
    q2[i] = 2 * ((b[i] + rounding) >> 8) + base;
    if (i == at) q2[i] += move;
  }
}

__device__ inline void StorePoints(int16_t* to, const int* q2) {
  uint32_t w[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    w[i] =
        __byte_perm(static_cast<uint32_t>(q2[2 * i]), static_cast<uint32_t>(q2[2 * i + 1]), 0x5410);
  }
  *reinterpret_cast<uint4*>(to) = {w[0], w[1], w[2], w[3]};
}
__device__ inline void LoadPoints(const int16_t* from, int* q2) {
  const uint4 v = *reinterpret_cast<const uint4*>(from);
  const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    q2[2 * i] = static_cast<int16_t>(w[i] & 0xFFFF);
    q2[2 * i + 1] = static_cast<int32_t>(w[i]) >> 16;
  }
}

template <bool kPaired, bool kSingle>
class UnitPasses {
 public:
  using S = Slice<kPaired>;
  static constexpr int kWidth = S::kWidth;

  __device__ UnitPasses(const EncodeConstants& constants, const EncodeLaunch& launch,
                        const EncodeUnit& unit, UnitShared& shared, const ChannelArrays& channels)
      : constants_(constants), launch_(launch), u_(unit), shared_(shared), ch_(channels) {
    arena_ = launch.arena_dev;
    places_ = reinterpret_cast<const TokenPlace*>(arena_ + unit.places_at);
    q2_ = reinterpret_cast<int16_t*>(arena_ + unit.q2_at);
    lanes_ = unit.row_lanes;
    sub_ = threadIdx.x % lanes_;
  }

  __device__ const unsigned char* Row(uint32_t t) const {
    const TokenPlace place = places_[t];
    return reinterpret_cast<const unsigned char*>(u_.src) + place.block * u_.block_stride +
           place.slot * u_.token_stride;
  }

  // Called by the whole block; a barrier must follow before results are read.
  template <int kFlags>
  __device__ void Run() {
    Sums sums;
    const uint32_t rows = kUnitThreads / lanes_;
    for (uint32_t at = 0; at < u_.tokens; at += rows) {
      RunRow<kFlags>(at + threadIdx.x / lanes_, sums);
    }
    if constexpr (kSingle) Flush<kFlags>(sums);
    if constexpr ((kFlags & kPassLoad) != 0) {
      if (__any_sync(kEveryLane, any_ != 0) && threadIdx.x % 32 == 0) shared_.any = 1;
    }
    if constexpr ((kFlags & kPassCheck) != 0) {
      const uint32_t halves = __reduce_add_sync(kEveryLane, halves_);
      if (threadIdx.x % 32 == 0) atomicAdd(&shared_.halves, halves);
      halves_ = 0;
    }
  }

 private:
  // A lane's sums over the rows, where it keeps its channels.
  struct Sums {
    uint32_t low[kWidth] = {};
    unsigned long long high[kWidth] = {};
  };

  // Calls f(slice) for the lane's slices of row t, loaded; `kept` is the one of a single slice.
  template <typename F>
  __device__ void Each(uint32_t t, bool valid, S& kept, bool load, F f) {
    const auto* angles =
        reinterpret_cast<const float2*>(arena_ + u_.rope_at) + size_t{t} * u_.pairs;
    if constexpr (kSingle) {
      if (!valid || sub_ >= u_.slices) return;
      if (load) {
        kept.MoveTo(u_, sub_);
        kept.Load(u_, Row(t), angles);
      }
      f(kept);
    } else {
      if (!valid) return;
      for (uint32_t j = sub_; j < u_.slices; j += lanes_) {
        kept.MoveTo(u_, j);
        kept.Load(u_, Row(t), angles);
        f(kept);
      }
    }
  }

  template <int kFlags>
  __device__ void RunRow(uint32_t t, Sums& sums) {
    const bool valid = t < u_.tokens;
    S slice;
    bool loaded = false;
    if constexpr ((kFlags & kPassLoad) != 0) {
      LoadRow(t, valid, slice);
      loaded = true;
    }
    bool raw = !valid || shared_.raw[t];
    if constexpr ((kFlags & kPassSpread) != 0) AddSpread(t, !raw, slice, sums);
    if constexpr ((kFlags & (kPassMeans | kPassQuantise | kPassCheck | kPassMeasure)) != 0) {
      const float row_scale = u_.is_key || !valid ? 0 : 256.0f * StepFloat(-shared_.row_step[t]);
      if constexpr ((kFlags & kPassMeans) != 0) AddMeans(t, !raw, row_scale, slice, sums);
      int q2[kWidth];
      constexpr bool kQuantise = (kFlags & kPassQuantise) != 0;
      if constexpr (kQuantise) {
        const bool beyond = Quantise(t, !raw, row_scale, !loaded, slice, q2);
        const bool too_far = RowAny(beyond, lanes_);
        __syncwarp();  // every lane has read the mark that is set now
        if (too_far && !raw) {
          raw = true;
          shared_.raw[t] = 1;
        }
        loaded = true;
      }
      if constexpr ((kFlags & kPassSquares) != 0) AddSquares(t, !raw, slice, q2, sums);
      if constexpr ((kFlags & kPassCheck) != 0) {
        if (Check<kQuantise>(t, !raw, slice, q2)) raw = true;
      }
      if constexpr ((kFlags & kPassMeasure) != 0) {
        Measure<kQuantise>(t, !raw, row_scale, !loaded, slice, q2, sums);
      }
    }
  }

  // Marks the row raw where it has to be, and finds a value's step.
  __device__ void LoadRow(uint32_t t, bool valid, S& slice) {
    uint32_t largest = 0;
    bool infinite = false;
    Each(t, valid, slice, true, [&](const S& s) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const uint32_t before = __float_as_uint(s.x[i]), after = __float_as_uint(s.y[i]);
        any_ |= before;
        largest = max(largest, max(before & 0x7FFFFFFF, after & 0x7FFFFFFF));
      }
    });
    infinite = largest >= 0x7F800000;
    bool raw = RowAny(infinite, lanes_) || !valid || arena_[u_.asked_at + t] != 0;
    if (u_.is_key) {
      // Exponents are of the vectors before rotary embedding.
      uint32_t rotated = 0;
      if (!shared_from_energy()) {
        Each(t, valid && !raw, slice, false, [&](const S& s) {
#pragma unroll
          for (int i = 0; i < kWidth; ++i) {
            rotated = max(rotated, __float_as_uint(s.y[i]) & 0x7FFFFFFF);
          }
        });
        rotated = __reduce_max_sync(kEveryLane, rotated);
        if (threadIdx.x % 32 == 0 && rotated > 0) atomicMax(&shared_.largest, rotated);
      }
    } else {
      largest = RowReduce(largest, lanes_, [](uint32_t a, uint32_t b) { return max(a, b); });
      const int exponent = ExponentOfBits(largest);
      const float scale = IntegerScale(exponent);
      unsigned long long energy = 0;
      Each(t, valid && !raw, slice, false, [&](const S& s) {
#pragma unroll
        for (int g = 0; g < kWidth; g += 8) {
          uint32_t part = 0;  // eight squares of at most 2^28
#pragma unroll
          for (int i = g; i < g + 8; ++i) {
            const int v = RoundSmall(__fmul_rn(s.y[i], scale));
            part += static_cast<uint32_t>(v * v);
          }
          energy += part;
        }
      });
      energy = RowReduce(energy, lanes_, [](auto a, auto b) { return a + b; });
      raw |= energy == 0;
      const int log_32 = 2 * launch_.value_unit_16 +
                         Log2Sixteenths(constants_, energy > 0 ? energy : 1) -
                         Log2Sixteenths(constants_, u_.dim) + 32 * (ScaledExponent(exponent) - 14);
      if (valid && sub_ == 0) shared_.row_step[t] = raw ? 0 : ClampStep((log_32 + 4) >> 3);
    }
    if (valid && sub_ == 0) {
      shared_.given_raw[t] = raw;
      shared_.raw[t] = raw;
    }
    __syncwarp();
  }

  __device__ bool shared_from_energy() const {
    return reinterpret_cast<const EncodeModel*>(arena_ + u_.model_at)->from_energy;
  }

  __device__ void AddSpread(uint32_t t, bool counts, S& slice, Sums& sums) {
    const float scale = IntegerScale(ExponentOfBits(shared_.largest));
    Each(t, counts, slice, true, [&](const S& s) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const int v = RoundSmall(__fmul_rn(s.y[i], scale));
        AddLow(s, i, static_cast<uint32_t>(v), sums);
        AddHigh(s, i, static_cast<uint32_t>(v * v), sums);
      }
    });
  }

  __device__ void AddMeans(uint32_t t, bool counts, float row_scale, S& slice, Sums& sums) {
    Each(t, counts, slice, true, [&](const S& s) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const float scale = u_.is_key ? ch_.inverse[s.Channel(i)] : row_scale;
        const int v = RoundClamped(__fmul_rn(__fmul_rn(s.y[i], scale), 0.0625f));
        AddLow(s, i, static_cast<uint32_t>(v), sums);
      }
    });
  }

  // Lattice points of the row into scratch. True when some number is too large for that.
  __device__ bool Quantise(uint32_t t, bool counts, float row_scale, bool load, S& slice, int* q2) {
    bool beyond = false;
    Each(t, counts, slice, load, [&](const S& s) {
#pragma unroll
      for (int g = 0; g < S::kGroups; ++g) {
        uint32_t bits[8], points[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const uint32_t c = s.channel[g] + i;
          const float scale = u_.is_key ? ch_.inverse[c] : row_scale;
          const int z = RoundClamped(__fsub_rn(__fmul_rn(s.y[8 * g + i], scale), ch_.offset[c]));
          beyond |= z >= kRoundLimitInteger || z <= -kRoundLimitInteger;
          bits[i] = kMagicBits + static_cast<uint32_t>(z);
        }
        NearestPoint(bits, points);
#pragma unroll
        for (int i = 0; i < 8; ++i) q2[8 * g + i] = static_cast<int>(points[i] - kMagicBits);
        StorePoints(q2_ + size_t{t} * u_.dim + s.channel[g], q2 + 8 * g);
      }
    });
    return beyond;
  }

  // Calls f(slice, points) for the lane's slices; points from registers or from scratch.
  template <bool kInRegisters, typename F>
  __device__ void EachPoints(uint32_t t, bool counts, S& slice, int* q2, F f) {
    const auto load = [&](const S& s) {
#pragma unroll
      for (int g = 0; g < S::kGroups; ++g) {
        LoadPoints(q2_ + size_t{t} * u_.dim + s.channel[g], q2 + 8 * g);
      }
    };
    if (!counts) return;
    if constexpr (kSingle) {
      if (sub_ >= u_.slices) return;
      if constexpr (!kInRegisters) {
        slice.MoveTo(u_, sub_);
        load(slice);
      }
      f(slice);
    } else {
      for (uint32_t j = sub_; j < u_.slices; j += lanes_) {
        slice.MoveTo(u_, j);
        load(slice);
        f(slice);
      }
    }
  }

  __device__ void AddSquares(uint32_t t, bool counts, S& slice, int* q2, Sums& sums) {
    EachPoints<true>(t, counts, slice, q2, [&](const S& s) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) AddHigh(s, i, static_cast<uint32_t>(q2[i] * q2[i]), sums);
    });
  }

  // Marks the row raw when a table does not hold one of its points. Returns whether it did.
  template <bool kInRegisters>
  __device__ bool Check(uint32_t t, bool counts, S& slice, int* q2) {
    bool out = false;
    uint32_t halves = 0;
    EachPoints<kInRegisters>(t, counts, slice, q2, [&](const S& s) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const uint32_t bound = ch_.bound[s.Channel(i)];
        out |= static_cast<uint32_t>(q2[i] + static_cast<int>(bound & 0xFFFF)) > bound >> 16;
      }
#pragma unroll
      for (int g = 0; g < S::kGroups; ++g) halves += q2[8 * g] & 1;
    });
    const bool marks = RowAny(out, lanes_);
    __syncwarp();
    if (marks) {
      if (sub_ == 0) {
        shared_.raw[t] = 1;
        atomicAdd(&shared_.marked, 1);
      }
    } else {
      halves_ += halves;
    }
    return marks;
  }

  template <bool kInRegisters>
  __device__ void Measure(uint32_t t, bool counts, float row_scale, bool load, S& slice, int* q2,
                          Sums& sums) {
    const bool by_channel = shared_from_energy();
    const float row_step =
        u_.is_key || t >= u_.tokens ? 0 : __fmul_rn(StepFloat(shared_.row_step[t]), 0.25f);
    const float uniform = u_.is_key ? ch_.inverse[0] : row_scale;
    unsigned long long error = 0, square = 0;
    // Plain slices rebuild from their partners' points, which other lanes have stored.
    if constexpr (!kPaired) __syncwarp();
    Each(t, counts, slice, load, [&](const S& s) {
      float back[kWidth];
      Rebuild<kInRegisters>(t, s, row_step, q2, back);
      uint32_t part = 0;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        if (i == 8) {
          error += part;
          part = 0;
        }
        const float scale = by_channel ? ch_.inverse[s.Channel(i)] : uniform;
        const int e =
            RoundClamped(__fmul_rn(__fsub_rn(ThroughDtype(u_, back[i]), s.x[i]), scale), 4095.0f);
        const uint32_t e2 = static_cast<uint32_t>(e * e);
        if (by_channel) {
          AddLow(s, i, e2, sums);
        } else {
          part += e2;
          const int v = RoundClamped(__fmul_rn(s.x[i], scale));
          square += static_cast<unsigned long long>(static_cast<long long>(v) * v);
        }
      }
      error += part;
    });
    if (by_channel) return;
    const auto add = [](auto a, auto b) { return a + b; };
    error = RowReduce(error, lanes_, add);
    square = RowReduce(square, lanes_, add);
    if (counts && sub_ == 0) {
      shared_.row_error[t] = error;
      shared_.row_square[t] = square;
    }
  }

  __device__ float Number(uint32_t t, uint32_t c, int q2, float row_step) const {
    return __fmul_rn(__int2float_rn(2 * q2 + ch_.mean[c]), u_.is_key ? ch_.step[c] : row_step);
  }

  // What a decoder will give before the cast, in canonical order.
  template <bool kInRegisters>
  __device__ void Rebuild(uint32_t t, const S& s, float row_step, int* q2, float (&out)[kWidth]) {
    const auto* angles =
        reinterpret_cast<const float2*>(arena_ + u_.rope_at) + size_t{t} * u_.pairs;
    const int16_t* points = q2_ + size_t{t} * u_.dim;
    if constexpr (!kInRegisters || !kSingle) {
#pragma unroll
      for (int g = 0; g < S::kGroups; ++g) LoadPoints(points + s.channel[g], q2 + 8 * g);
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) out[i] = Number(t, s.Channel(i), q2[i], row_step);
    if (!s.rotated) return;
    if constexpr (kPaired) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float2 r = angles[s.channel[0] + i];
        const float a = out[i], b = out[8 + i];
        out[i] = __fsub_rn(__fmul_rn(a, r.x), __fmul_rn(b, r.y));
        out[8 + i] = __fadd_rn(__fmul_rn(b, r.x), __fmul_rn(a, r.y));
      }
    } else {
      for (int i = 0; i < 8; ++i) {
        const uint32_t c = s.channel[0] + i, pairs = u_.pairs;
        if (c >= 2 * pairs) continue;
        const bool first = c < pairs;
        const uint32_t partner = first ? c + pairs : c - pairs;
        const float other = Number(t, partner, points[partner], row_step);
        const float2 r = angles[first ? c : partner];
        out[i] = first ? __fsub_rn(__fmul_rn(out[i], r.x), __fmul_rn(other, r.y))
                       : __fadd_rn(__fmul_rn(out[i], r.x), __fmul_rn(other, r.y));
      }
    }
  }

  __device__ void AddLow(const S& s, int i, uint32_t v, Sums& sums) {
    if constexpr (kSingle) {
      sums.low[i] += v;
    } else {
      atomicAdd(&ch_.sum32[s.Channel(i)], v);
    }
  }
  __device__ void AddHigh(const S& s, int i, uint32_t v, Sums& sums) {
    if constexpr (kSingle) {
      sums.high[i] += v;
    } else {
      AddShared(&ch_.sum64[s.Channel(i)], v);
    }
  }
  template <int kFlags>
  __device__ void Flush(const Sums& sums) {
    if (sub_ >= u_.slices) return;
    S s;
    s.MoveTo(u_, sub_);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if constexpr ((kFlags & (kPassSpread | kPassMeans | kPassMeasure)) != 0) {
        atomicAdd(&ch_.sum32[s.Channel(i)], sums.low[i]);
      }
      if constexpr ((kFlags & (kPassSpread | kPassSquares)) != 0) {
        AddShared(&ch_.sum64[s.Channel(i)], sums.high[i]);
      }
    }
  }

  const EncodeConstants& constants_;
  const EncodeLaunch& launch_;
  const EncodeUnit& u_;
  UnitShared& shared_;
  const ChannelArrays& ch_;
  unsigned char* arena_;
  const TokenPlace* places_;
  int16_t* q2_;
  uint32_t lanes_, sub_;
  uint32_t any_ = 0, halves_ = 0;
};

}  // namespace latticekv::cuda

#endif  // LATTICEKV_CORE_CODEC_CUDA_UNIT_PASSES_CUH_
