// Units whose statistics are their own, or the better of these and the profile's, in a pass for each
// of means, spreads and points. The general passes, whose results these are, are in unit_kernel.cuh.
#include "core/codec/cuda/fused_rows.cuh"

namespace latticekv::cuda {
namespace {

// Own statistics that may be needed again, of channel and row threadIdx.x.
struct KeptStatistics {
  int32_t mean = 0;
  int16_t sigma = 0;
  uint8_t raw = 0;
};

template <bool kKey, bool kBf16, bool kByChannel>
struct OwnEncoder {
  const EncodeUnit& unit;
  UnitShared& shared;
  const ChannelArrays& channels;
  const SliceConstants& constants;
  UnitChoice& choice;
  FusedRows<kKey, kBf16, kByChannel>& rows;

  // Steps of keys of a model without query energy.
  __device__ void FindKeySteps() {
    rows.FindLargest();
    __syncthreads();
    uint32_t sums[16] = {};
    rows.template AddSpread<false>(sums);
    rows.AddTo(channels.sum32, sums);
#pragma unroll
    for (uint32_t& sum : sums) sum = 0;
    rows.template AddSpread<true>(sums);
    rows.AddTo(channels.sum64, sums);
    __syncthreads();
    choice.SpreadSteps();
  }

  // Means and spreads of the rows that are not raw.
  __device__ void FindStatistics() {
    FillSlices(unit, channels, constants);
    uint32_t sums[16] = {};
    rows.AddMeans(sums);
    rows.AddTo(channels.sum32, sums);
    __syncthreads();
    choice.OwnMeans();
    FillSlices(unit, channels, constants);
#pragma unroll
    for (uint32_t& sum : sums) sum = 0;
    rows.AddSquares(sums);
    rows.AddTo(channels.sum64, sums);
    __syncthreads();
    choice.OwnSigmas();
  }

  // Points, outliers and errors under the present statistics.
  __device__ void Quantise() {
    const bool low_bits = FillSlices(unit, channels, constants);
    uint32_t sums[16] = {};
    rows.template Run<false>(low_bits, sums);
    if (kByChannel) rows.AddTo(channels.sum32, sums);
    __syncthreads();
  }

  __device__ KeptStatistics Keep() const {
    KeptStatistics kept;
    if (threadIdx.x < unit.dim) {
      kept.mean = channels.mean[threadIdx.x];
      kept.sigma = channels.sigma[threadIdx.x];
    }
    if (threadIdx.x < unit.tokens) kept.raw = shared.raw[threadIdx.x];
    return kept;
  }
  __device__ void Restore(const KeptStatistics& kept) {
    if (threadIdx.x < unit.dim) choice.SetStatistics(threadIdx.x, kept.mean, kept.sigma);
    if (threadIdx.x < unit.tokens) shared.raw[threadIdx.x] = kept.raw;
    choice.ClearSums();
  }

  // Leaves the chosen coding in shared.result, its points in scratch and its errors summed. One call
  // of each pass, so that its code is there once.
  __device__ void Choose(bool also_profile) {
    enum { kFirst, kAgain, kProfile, kBack } turn = kFirst;
    uint64_t own_cost = 0;
    bool as_difference = false;
    KeptStatistics kept;
    while (true) {
      if (turn == kFirst || turn == kAgain) {
        // Rows that were marked raw stay so.
        if (turn == kAgain) choice.ClearSums();
        FindStatistics();
      } else if (turn == kProfile) {
        choice.ForgetOutliers();
        choice.ProfileStatistics();
      } else {
        Restore(kept);
      }
      Quantise();
      if (turn == kFirst && shared.marked > 0) {
        turn = kAgain;
        continue;
      }
      if (turn == kBack) {
        CodingSources sources = kOwnSources;
        if (as_difference) sources = kDifferenceSources;
        choice.MakeCandidate(sources);
        return;
      }
      if (turn == kProfile) {
        const uint64_t side = choice.MakeCandidate(kProfileSources);
        if (own_cost >= side + choice.BlockSum(rows.cost())) return;
        turn = kBack;
        continue;
      }
      const uint64_t sent = choice.MakeCandidate(kOwnSources);
      if (!also_profile) return;
      const uint64_t difference = choice.MakeCandidate(kDifferenceSources);
      as_difference = difference < sent;
      own_cost = (as_difference ? difference : sent) + choice.BlockSum(rows.cost());
      kept = Keep();
      turn = kProfile;
    }
  }
};

// kByChannel: keys whose steps come from query energy.
template <bool kKey, bool kBf16, bool kByChannel>
__global__ void __launch_bounds__(kUnitThreads, 2)
    FusedOwnKernel(EncodeLaunch launch, uint64_t list_at) {
  __shared__ UnitShared shared;
  __shared__ FusedUnit fused;
  StartFused(launch, list_at, fused, shared);
  const EncodeUnit& unit = fused.unit;
  const ChannelArrays channels(channel_bytes, unit.dim);
  SliceConstants constants(channel_bytes + ChannelArrayBytes(unit.dim), unit.dim);
  UnitChoice choice(kConstants, launch, unit, shared, channels);
  const bool also_profile = launch.stats == kStatsAuto && choice.has_statistics();
  if (also_profile) constants.AddCosts(kConstants, unit.dim);
  if (kByChannel) choice.ModelSteps();
  FusedRows<kKey, kBf16, kByChannel> rows(launch, unit, shared, constants, fused.row_at);
  if constexpr (!kKey) rows.FindSteps(launch.value_unit_16);
  choice.ForgetOutliers();
  OwnEncoder<kKey, kBf16, kByChannel> encoder{unit, shared, channels, constants, choice, rows};
  if constexpr (kKey && !kByChannel) encoder.FindKeySteps();
  encoder.Choose(also_profile);
  if (shared.any == 0) {
    choice.PublishZero();
  } else {
    choice.Publish(shared.coded > 0 ? choice.ErrorSum() : 0);
  }
}

}  // namespace

cudaError_t LaunchFusedOwn(const EncodeLaunch& launch, cudaStream_t stream) {
  const uint32_t bytes = SliceConstants::BytesWithCosts(launch.max_dim);
  cudaError_t error = cudaSuccess;
  const auto add = [&](auto kernel, int list) {
    if (error == cudaSuccess) error = LaunchFusedList(kernel, launch, list, bytes, stream);
  };
  add(FusedOwnKernel<false, false, false>, kFusedValues);
  add(FusedOwnKernel<false, true, false>, kFusedValues + 1);
  add(FusedOwnKernel<true, false, true>, kFusedKeysByEnergy);
  add(FusedOwnKernel<true, true, true>, kFusedKeysByEnergy + 1);
  add(FusedOwnKernel<true, false, false>, kFusedKeysBySpread);
  add(FusedOwnKernel<true, true, false>, kFusedKeysBySpread + 1);
  return error;
}

}  // namespace latticekv::cuda
