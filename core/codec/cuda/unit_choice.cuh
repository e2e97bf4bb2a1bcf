// How a quantised unit is coded: sources of steps, means and spreads, codes of what is sent, and
// what all of it costs. The scalar original is core/codec/cpu/unit_choice.cc.
#ifndef LATTICEKV_CORE_CODEC_CUDA_UNIT_CHOICE_CUH_
#define LATTICEKV_CORE_CODEC_CUDA_UNIT_CHOICE_CUH_

#include "core/codec/cuda/unit_passes.cuh"

namespace latticekv::cuda {

// Values of the enums of core/codec/tile_format.h, which device code does not include.
enum : int { kSourceNone = 0, kSourceOwn = 1, kSourceProfile = 2, kSourceDifference = 3 };
enum : int { kStepUniform = 0, kStepSent = 1, kStepProfile = 2 };

struct CodingSources {
  int statistics;  // of means and spreads alike
  int key_step;
};
inline constexpr CodingSources kOwnSources{kSourceOwn, kStepSent};
inline constexpr CodingSources kDifferenceSources{kSourceDifference, kStepProfile};
inline constexpr CodingSources kProfileSources{kSourceProfile, kStepProfile};
// Of StatsMode.
enum : int { kStatsOwn = 0, kStatsProfile = 1, kStatsAuto = 2 };

// The arrays behind an EncodeModel.
struct ModelArrays {
  const uint64_t* weight;
  const int32_t* mean;
  const int16_t* log2_sigma_16;
  const int16_t* step;
  __device__ ModelArrays(const EncodeModel* model, uint32_t dim) {
    weight = reinterpret_cast<const uint64_t*>(model + 1);
    mean = reinterpret_cast<const int32_t*>(weight + dim);
    log2_sigma_16 = reinterpret_cast<const int16_t*>(mean + dim);
    step = log2_sigma_16 + dim;
  }
};

__device__ inline uint32_t Lane() { return threadIdx.x % 32; }

// Sum over the values of f(value), 0 without any; loads go ahead of their use, eight a lane. Called
// by a whole warp, as what follows.
template <typename F>
__device__ uint32_t WarpSum(const int32_t* values, int n, F f) {
  uint32_t sum = 0;
  for (int first = Lane(); first < n; first += 256) {
    int value[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) value[k] = first + 32 * k < n ? values[first + 32 * k] : 0;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const uint32_t of_value = f(value[k]);
      sum += first + 32 * k < n ? of_value : 0;
    }
  }
  return __reduce_add_sync(kEveryLane, sum);
}

__device__ inline void WarpRange(const int32_t* values, int n, int& low, int& high) {
  low = 0x7FFFFFFF, high = -0x7FFFFFFF;
  for (int i = Lane(); i < n; i += 32) low = min(low, values[i]), high = max(high, values[i]);
  low = __reduce_min_sync(kEveryLane, low);
  high = __reduce_max_sync(kEveryLane, high);
}

// Element n / 2 of the sorted values, 0 without any.
__device__ inline int WarpMiddle(const int32_t* values, int n) {
  if (n == 0) return 0;
  int low, high;
  WarpRange(values, n, low, high);
  while (low < high) {
    const int middle = low + (high - low) / 2;
    const uint32_t count = WarpSum(values, n, [&](int v) { return v <= middle ? 1u : 0u; });
    if (count > static_cast<uint32_t>(n) / 2) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Smallest table spread whose symbols hold low .. high.
__device__ inline int SmallestSpread(const EncodeConstants& constants, int low, int high,
                                     bool half) {
  for (int s = 0; s < kEntropyTables; ++s) {
    const int limit = constants.limit[s];
    if (low >= -limit && high <= limit - half) return s;
  }
  return kEntropyTables;
}

// Ways to code `values` as side information, dealt to the block's warps: the cheapest of this
// warp's, cost << 16 | its place among all << 8 | spread << 4 | bits, cost in 1/256 bit.
inline constexpr uint64_t kNoSide = ~uint64_t{0};
__device__ inline uint64_t WarpChooseSide(const EncodeConstants& constants, const int32_t* values,
                                          int n) {
  constexpr uint32_t kWarps = kUnitThreads / 32;
  uint64_t best = kNoSide;
  int low, high;
  WarpRange(values, n, low, high);
  uint32_t at = 0;
  int tried = 0;
  for (int bits = 0; bits < 16 && tried < 4; ++bits) {
    const int first = SmallestSpread(constants, low >> bits, high >> bits, bits > 0);
    for (int s = first; s < min(first + 5, kEntropyTables); ++s, ++at) {
      if (at % kWarps != threadIdx.x / 32) continue;
      const uint16_t* table = constants.cost[TableId(s, bits > 0, kAll)];
      // Values beyond a table do not occur; those that stand for none are zeros.
      const uint32_t sum =
          WarpSum(values, n, [&](int v) { return uint32_t{table[(v >> bits) + kSymbolOffset]}; }) +
          256u * static_cast<uint32_t>(bits * n);
      const uint64_t way = uint64_t{sum} << 16 | at << 8 | static_cast<uint32_t>(s << 4 | bits);
      best = way < best ? way : best;
    }
    tried += first < kEntropyTables;
  }
  return best;
}

// Decisions of one unit; every method is called by the whole block and ends with a barrier.
class UnitChoice {
 public:
  __device__ UnitChoice(const EncodeConstants& constants, const EncodeLaunch& launch,
                        const EncodeUnit& unit, UnitShared& shared, const ChannelArrays& channels)
      : constants_(constants),
        u_(unit),
        shared_(shared),
        ch_(channels),
        model_(reinterpret_cast<const EncodeModel*>(launch.arena_dev + unit.model_at)),
        profile_(model_, unit.dim),
        value_unit_16_(launch.value_unit_16),
        result_(reinterpret_cast<UnitResult*>(launch.arena_dev + unit.result_at)) {
    order_ = reinterpret_cast<uint8_t*>(result_ + 1);
  }

  __device__ bool from_energy() const { return model_->from_energy; }
  __device__ bool has_statistics() const { return model_->has_statistics; }

  // Steps of keys with query energy.
  __device__ void ModelSteps() {
    for (uint32_t c = threadIdx.x; c < u_.dim; c += kUnitThreads) SetKeyStep(c, profile_.step[c]);
    if (threadIdx.x == 0) shared_.key_base = model_->key_base;
    __syncthreads();
  }

  // Steps of keys without it, from the sums of kPassSpread.
  __device__ void SpreadSteps() {
    const long long n = u_.tokens - CountRaw(shared_.raw);
    uint64_t variance = 0, energy = 0;
    for (uint32_t c = threadIdx.x; c < u_.dim; c += kUnitThreads) {
      const long long sum = static_cast<int32_t>(ch_.sum32[c]);
      const long long square = static_cast<long long>(ch_.sum64[c]);
      variance += static_cast<uint64_t>(n * square - sum * sum);
      energy += static_cast<uint64_t>(n * square);
    }
    variance = BlockSum(variance);
    energy = BlockSum(energy);
    uint64_t v = variance ? variance : energy;
    if (v == 0) v = 1;
    uint64_t count = static_cast<uint64_t>(n) * n * u_.dim;
    if (count == 0) count = 1;
    const int log_32 = model_->spread_unit + Log2Sixteenths(constants_, v) -
                       Log2Sixteenths(constants_, count) +
                       32 * (ScaledExponent(ExponentOfBits(shared_.largest)) - 14);
    const int step = ClampStep((log_32 + 4) >> 3);
    for (uint32_t c = threadIdx.x; c < u_.dim; c += kUnitThreads) SetKeyStep(c, step);
    if (threadIdx.x == 0) shared_.key_base = static_cast<int16_t>(step);
    ClearSums();
  }

  __device__ void ClearSums() {
    __syncthreads();
    for (uint32_t c = threadIdx.x; c < u_.dim; c += kUnitThreads) {
      ch_.sum32[c] = 0;
      ch_.sum64[c] = 0;
    }
    if (threadIdx.x == 0) shared_.halves = shared_.marked = 0;
    __syncthreads();
  }

  // Raw vectors as they were before quantising.
  __device__ void ForgetOutliers() {
    for (uint32_t t = threadIdx.x; t < u_.tokens; t += kUnitThreads) {
      shared_.raw[t] = shared_.given_raw[t];
    }
    ClearSums();
  }

  // Means and sigmas of the profile.
  __device__ void ProfileStatistics() {
    for (uint32_t c = threadIdx.x; c < u_.dim; c += kUnitThreads) {
      SetMean(c, ProfileMean(c));
      SetSigma(c, ProfileSigma(c));
    }
    ClearSums();
  }

  // Those of one channel, found earlier; a barrier must follow.
  __device__ void SetStatistics(uint32_t c, int mean, int sigma) {
    SetMean(c, mean);
    SetSigma(c, sigma);
  }

  // Own means from the sums of kPassMeans; whether some mean is another than before.
  __device__ bool OwnMeans() {
    const long long n = u_.tokens - CountRaw(shared_.raw);
    int changed = 0;
    for (uint32_t c = threadIdx.x; c < u_.dim; c += kUnitThreads) {
      int mean = 0;
      if (n > 0) {
        const long long numerator = static_cast<int32_t>(ch_.sum32[c]) + 2 * n;
        const long long denominator = 4 * n;
        long long quotient = numerator / denominator;
        if (numerator % denominator < 0) --quotient;
        mean = static_cast<int>(ClampValue<long long>(quotient, -700'000, 700'000));
      }
      changed |= mean != ch_.mean[c];
      SetMean(c, mean);
    }
    changed = __syncthreads_or(changed);
    ClearSums();
    return changed;
  }

  // Own sigmas from the sums of kPassSquares.
  __device__ void OwnSigmas() {
    const uint64_t n = u_.tokens - CountRaw(shared_.raw);
    for (uint32_t c = threadIdx.x; c < u_.dim; c += kUnitThreads) {
      const uint64_t sum = ch_.sum64[c];
      int sigma = 0;
      if (sum != 0 && n != 0) {
        sigma = ClampValue(
            ((Log2Sixteenths(constants_, sum) - Log2Sixteenths(constants_, 4 * n) + 8) >> 4) + 7, 0,
            kMaxSigmaIndex);
      }
      SetSigma(c, sigma);
    }
    ClearSums();
  }

  __device__ uint32_t CountRaw(const uint8_t* raw) const {
    return __syncthreads_count(threadIdx.x < u_.tokens && raw[threadIdx.x] != 0);
  }

  // Bases and codes of what is sent.
  __device__ void ChooseSides(UnitResult& r) {
    const uint32_t warp = threadIdx.x / 32;
    const int counts[3] = {r.step_count, r.mean_count, r.sigma_count};
    if (warp == 0 || warp == 2) {
      const int n = counts[warp];
      int32_t* values = ch_.values[warp];
      int base = n > 0 ? static_cast<int16_t>(WarpMiddle(values, n)) : 0;
      if (warp == 2) base = static_cast<int8_t>(base);
      if (base != 0) {
        for (int i = Lane(); i < n; i += 32) values[i] -= base;
      }
      if (Lane() == 0 && warp == 0 && n > 0) r.step_base = static_cast<int16_t>(base);
      if (Lane() == 0 && warp == 2) r.sigma_base = static_cast<int8_t>(base);
    }
    __syncthreads();
    for (int k = 0; k < 3; ++k) {
      const uint64_t best =
          counts[k] > 0 ? WarpChooseSide(constants_, ch_.values[k], counts[k]) : 0;
      if (Lane() == 0) shared_.side_best[k][warp] = best;
    }
    __syncthreads();
    if (threadIdx.x < 3) {
      uint64_t best = kNoSide;
      for (uint64_t way : shared_.side_best[threadIdx.x]) best = way < best ? way : best;
      shared_.side_cost[threadIdx.x] = best == kNoSide ? uint64_t{1} << 50 : best >> 16;
      const auto spread = static_cast<uint8_t>(best == kNoSide ? 0 : best >> 4 & 15);
      const auto bits = static_cast<uint8_t>(best == kNoSide ? 0 : best & 15);
      if (threadIdx.x == 0) r.step_spread = spread, r.step_bits = bits;
      if (threadIdx.x == 1) r.mean_spread = spread, r.mean_bits = bits;
      if (threadIdx.x == 2) r.sigma_spread = spread, r.sigma_bits = bits;
    }
    __syncthreads();
  }

  // The header, what is sent and its cost, points left out. Fills shared.result and rows' order.
  __device__ uint64_t MakeCandidate(CodingSources sources) {
    OrderRows();
    const uint32_t coded = shared_.coded, raw = u_.tokens - coded;
    FillValues(sources, coded);
    UnitResult& r = shared_.result;
    ChooseSides(r);
    uint64_t cost = shared_.side_cost[0] + shared_.side_cost[1] + shared_.side_cost[2];
    const uint64_t halves = shared_.halves, groups = uint64_t{coded} * (u_.dim / 8);
    uint32_t coset = 0;
    if (groups > 0) {
      coset = static_cast<uint32_t>((halves * 32 + groups / 2) / groups);
      if (coset > 31) coset = 31;
      const uint32_t frequency = HalfCosetFrequency(coset);
      cost += halves * constants_.coset_cost[frequency] +
              (groups - halves) * constants_.coset_cost[kProbabilityTotal - frequency];
    }
    cost += uint64_t{raw} * 256 * 8 * (u_.vector_bytes + 1);
    __syncthreads();
    if (threadIdx.x == 0) {
      r.coset = static_cast<uint8_t>(coset);
      if (coded == 0) {
        r.step_base = 0;
        r.step_count = 0;
      }
    }
    __syncthreads();
    return cost;
  }

  // Writes the result and what belongs to it. `error_sum` is the unit's squared error.
  __device__ void Publish(uint64_t error_sum) {
    UnitResult& r = shared_.result;
    const uint32_t dim = u_.dim;
    int32_t* out = reinterpret_cast<int32_t*>(order_ + kUnitOrderBytes);
    const uint32_t counts[3] = {r.step_count, r.mean_count, r.sigma_count};
    const uint32_t rooms[3] = {StepRoom(dim), dim, dim};
    for (int k = 0; k < 3; ++k) {
      for (uint32_t i = threadIdx.x; i < counts[k]; i += kUnitThreads) out[i] = ch_.values[k][i];
      out += rooms[k];
    }
    uint8_t* table = reinterpret_cast<uint8_t*>(out);
    int low_bits = 0;
    for (uint32_t c = threadIdx.x; c < dim; c += kUnitThreads) {
      const SigmaCode code = SigmaCodeOf(ch_.sigma[c]);
      table[c] = static_cast<uint8_t>(TableId(code.spread, 0, kAll));
      table[dim + c] = code.low_bits;
      low_bits |= code.low_bits;
    }
    low_bits = __syncthreads_or(low_bits);
    if (threadIdx.x == 0) {
      r.any_low_bits = low_bits != 0;
      r.error_sum = error_sum;
      *result_ = r;
    }
  }

  // A unit of zeros alone.
  __device__ void PublishZero() {
    if (threadIdx.x != 0) return;
    UnitResult r{};
    r.modes = 1 << 7;
    *result_ = r;
  }

  // The unit's squared error from what kPassMeasure summed.
  __device__ uint64_t ErrorSum() {
    constexpr uint64_t kMaxVectorError = uint64_t{1} << 40, kMaxChannelError = uint64_t{1} << 50;
    uint64_t sum = 0;
    if (from_energy()) {
      for (uint32_t c = threadIdx.x; c < u_.dim; c += kUnitThreads) {
        const uint64_t e = ch_.sum32[c] * profile_.weight[c];
        sum += e < kMaxChannelError ? e : kMaxChannelError;
      }
      return BlockSum(sum) / u_.dim;
    }
    if (threadIdx.x < u_.tokens && !shared_.raw[threadIdx.x]) {
      constexpr uint64_t kMost = (uint64_t{1} << 36) - 1;
      uint64_t e = shared_.row_error[threadIdx.x], v = shared_.row_square[threadIdx.x];
      e = (e < kMost ? e : kMost) << 28;
      const uint64_t ratio = e / (v > 0 ? v : 1);
      sum = ratio < kMaxVectorError ? ratio : kMaxVectorError;
    }
    return BlockSum(sum);
  }

  // Cost of all coded points under the tables, in 1/256 bit, cosets left out.
  __device__ uint64_t PointCost(const int16_t* q2) {
    uint64_t cost = 0;
    for (uint32_t i = threadIdx.x; i < uint32_t{u_.tokens} * u_.dim; i += kUnitThreads) {
      const uint32_t t = i / u_.dim, c = i % u_.dim, place = c % 8;
      if (shared_.raw[t]) continue;
      const SigmaCode code = SigmaCodeOf(ch_.sigma[c]);
      const int q = q2[i], k = q >> 1;
      const int half = code.low_bits > 0 || (q & 1);
      const int subset = place < 7 || code.low_bits > 0 ? kAll : kEven + (k & 1);
      const int id = TableId(code.spread, half, static_cast<Subset>(subset));
      cost += constants_.cost[id][(k >> code.low_bits) + kSymbolOffset];
      cost += 256u * (code.low_bits > 0 ? code.low_bits - (place == 7) : 0);
    }
    return BlockSum(cost);
  }

  // Sum over the block's threads, which all get it.
  __device__ uint64_t BlockSum(uint64_t v) {
    if (threadIdx.x == 0) shared_.total = 0;
    for (int o = 16; o > 0; o /= 2) v += __shfl_xor_sync(kEveryLane, v, o);
    __syncthreads();
    if (Lane() == 0) AddShared(&shared_.total, v);
    __syncthreads();
    const uint64_t total = shared_.total;
    __syncthreads();
    return total;
  }

 private:
  __device__ void SetKeyStep(uint32_t c, int step) {
    ch_.inverse[c] = 256.0f * StepFloat(-step);
    ch_.step[c] = __fmul_rn(StepFloat(step), 0.25f);
  }
  __device__ void SetMean(uint32_t c, int mean) {
    ch_.mean[c] = mean;
    ch_.offset[c] = 64.0f * static_cast<float>(mean);
  }
  __device__ void SetSigma(uint32_t c, int sigma) {
    ch_.sigma[c] = static_cast<int16_t>(sigma);
    const SigmaCode code = SigmaCodeOf(sigma);
    const uint32_t h = static_cast<uint32_t>(constants_.limit[code.spread]) << (code.low_bits + 1);
    ch_.bound[c] = h | (2 * h - (code.low_bits > 0)) << 16;
  }

  // Step in sixteenths that a channel's statistics are measured in.
  __device__ int StatisticsStep(uint32_t c) const {
    return u_.is_key ? 4 * KeyStep(c) : value_unit_16_;
  }
  __device__ int KeyStep(uint32_t c) const {
    return from_energy() ? profile_.step[c] : shared_.key_base;
  }
  __device__ int ProfileMean(uint32_t c) const {
    return MeanInQuarterSteps(profile_.mean[c], model_->mean_exponent, StatisticsStep(c),
                              constants_.down_factors);
  }
  __device__ int ProfileSigma(uint32_t c) const {
    return SigmaIndexOf(profile_.log2_sigma_16[c], StatisticsStep(c),
                        constants_.sigma_with_noise_16);
  }

  // Tokens of raw vectors, then of coded ones, both increasing; the first warp's work.
  __device__ void OrderRows() {
    __syncthreads();
    if (threadIdx.x < 32) {
      uint32_t raw = 0;
      for (uint32_t t = Lane(); t < u_.tokens; t += 32) raw += shared_.raw[t] != 0;
      raw = __reduce_add_sync(kEveryLane, raw);
      uint32_t next_raw = 0, next_coded = raw;
      for (uint32_t at = 0; at < u_.tokens; at += 32) {
        const uint32_t t = at + Lane();
        const bool inside = t < u_.tokens, is_raw = inside && shared_.raw[t];
        const uint32_t raws = __ballot_sync(kEveryLane, is_raw);
        const uint32_t coded = __ballot_sync(kEveryLane, inside && !is_raw);
        const uint32_t before = (1u << Lane()) - 1;
        if (is_raw) order_[next_raw + __popc(raws & before)] = static_cast<uint8_t>(t);
        if (inside && !is_raw) {
          order_[next_coded + __popc(coded & before)] = static_cast<uint8_t>(t);
        }
        next_raw += __popc(raws);
        next_coded += __popc(coded);
      }
      if (Lane() == 0) shared_.coded = u_.tokens - raw;
    }
    __syncthreads();
  }

  // Sources, counts and the values that are sent, their bases still in them.
  __device__ void FillValues(CodingSources sources, uint32_t coded) {
    const uint32_t dim = u_.dim, pairs = u_.pairs, raw = u_.tokens - coded;
    const int key_step = from_energy() ? sources.key_step : kStepUniform;
    const int step_source = u_.is_key ? key_step : kStepSent;
    const bool sends =
        coded > 0 && (sources.statistics == kSourceOwn || sources.statistics == kSourceDifference);
    // The step code is chosen for keys' steps even where nothing is coded in the end.
    const uint32_t steps = step_source != kStepSent ? 0 : u_.is_key ? dim - pairs : coded;
    if (u_.is_key) {
      for (uint32_t s = threadIdx.x; s < steps; s += kUnitThreads) {
        ch_.values[0][s] = KeyStep(s < pairs ? s : s + pairs);
      }
    } else {
      for (uint32_t i = threadIdx.x; i < steps; i += kUnitThreads) {
        ch_.values[0][i] = shared_.row_step[order_[raw + i]];
      }
    }
    const bool difference = sources.statistics == kSourceDifference;
    for (uint32_t c = threadIdx.x; sends && c < dim; c += kUnitThreads) {
      ch_.values[1][c] = ch_.mean[c] - (difference ? ProfileMean(c) : 0);
      ch_.values[2][c] = ch_.sigma[c] - (difference ? ProfileSigma(c) : 0);
    }
    if (threadIdx.x == 0) {
      UnitResult r{};
      const int statistics = coded > 0 ? sources.statistics : kSourceNone;
      const int step = coded > 0 ? step_source : kStepUniform;
      r.coded_count = static_cast<uint16_t>(coded);
      r.raw_count = static_cast<uint16_t>(raw);
      r.step_count = static_cast<uint16_t>(steps);
      r.mean_count = r.sigma_count = static_cast<uint16_t>(sends ? dim : 0);
      r.step_base = u_.is_key ? shared_.key_base : 0;
      r.modes = static_cast<uint8_t>(statistics | statistics << 2 | step << 4 | (coded == 0) << 6);
      r.uses_profile = statistics >= kSourceProfile || step == kStepProfile;
      shared_.result = r;
    }
    __syncthreads();
  }

  const EncodeConstants& constants_;
  const EncodeUnit& u_;
  UnitShared& shared_;
  const ChannelArrays& ch_;
  const EncodeModel* model_;
  const ModelArrays profile_;
  const int value_unit_16_;
  UnitResult* result_;
  uint8_t* order_;
};

}  // namespace latticekv::cuda

#endif  // LATTICEKV_CORE_CODEC_CUDA_UNIT_CHOICE_CUH_
