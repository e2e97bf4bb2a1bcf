// Quantises units, a block each: everything of encoding but the entropy coder.
#include "core/codec/cuda/encode_kernels.h"
#include "core/codec/cuda/unit_choice.cuh"

namespace latticekv::cuda {
namespace {

__device__ const EncodeConstants kConstants = MakeEncodeConstants();
extern __shared__ __align__(16) unsigned char channel_bytes[];

constexpr CodingSources kOwnSources{kSourceOwn, kStepSent};
constexpr CodingSources kDifferenceSources{kSourceDifference, kStepProfile};
constexpr CodingSources kProfileSources{kSourceProfile, kStepProfile};
enum : int { kStatsOwn = 0, kStatsProfile = 1 };

template <bool kPaired, bool kSingle>
struct UnitEncoder {
  UnitPasses<kPaired, kSingle>& passes;
  UnitChoice& choice;
  UnitShared& shared;
  const EncodeUnit& unit;
  int16_t* q2;

  // Lattice points under the profile's statistics, outliers marked.
  __device__ void QuantiseWithProfile() {
    choice.ForgetOutliers();
    choice.ProfileStatistics();
    passes.template Run<kPassQuantise | kPassCheck>();
    __syncthreads();
  }

  // Under own ones.
  __device__ void QuantiseWithOwn() {
    choice.ForgetOutliers();
    passes.template Run<kPassMeans>();
    __syncthreads();
    choice.OwnMeans();
    passes.template Run<kPassQuantise | kPassSquares>();
    __syncthreads();
    choice.OwnSigmas();
    passes.template Run<kPassCheck>();
    __syncthreads();
    if (shared.marked == 0) return;
    // Outliers are left out of means and spreads: take both again, once.
    choice.ClearSums();
    passes.template Run<kPassMeans>();
    __syncthreads();
    choice.OwnMeans();
    passes.template Run<kPassQuantise | kPassSquares>();
    __syncthreads();
    choice.OwnSigmas();
    passes.template Run<kPassCheck>();
    __syncthreads();
  }

  __device__ void FindSteps() {
    if (unit.is_key && !choice.from_energy()) {
      passes.template Run<kPassSpread>();
      __syncthreads();
      choice.SpreadSteps();
    }
  }

  // Leaves the chosen coding in shared.result and its points in scratch.
  __device__ void Choose(int stats) {
    if (stats == kStatsOwn || !choice.has_statistics()) {
      QuantiseWithOwn();
      choice.MakeCandidate(kOwnSources);
      return;
    }
    const uint32_t coded_before = unit.tokens - choice.CountRaw(shared.given_raw);
    QuantiseWithProfile();
    const uint64_t profile_side = choice.MakeCandidate(kProfileSources);
    if (stats == kStatsProfile && coded_before - shared.coded <= unit.tokens / 16u) return;
    const uint64_t profile_cost = profile_side + choice.PointCost(q2);
    QuantiseWithOwn();
    const uint64_t sent = choice.MakeCandidate(kOwnSources);
    const uint64_t difference = choice.MakeCandidate(kDifferenceSources);
    const bool as_difference = difference < sent;
    if ((as_difference ? difference : sent) + choice.PointCost(q2) < profile_cost) {
      if (!as_difference) choice.MakeCandidate(kOwnSources);
      return;
    }
    QuantiseWithProfile();
    choice.MakeCandidate(kProfileSources);
  }
};

template <bool kPaired, bool kSingle>
__global__ void __launch_bounds__(kUnitThreads, kPaired && kSingle ? 2 : 1)
    UnitKernel(EncodeLaunch launch, uint64_t list_at) {
  __shared__ UnitShared shared;
  unsigned char* arena = launch.arena_dev;
  const uint32_t index = reinterpret_cast<const uint32_t*>(arena + list_at)[blockIdx.x];
  const EncodeUnit unit = reinterpret_cast<const EncodeUnit*>(arena + launch.units_at)[index];
  const ChannelArrays channels(channel_bytes, unit.dim);
  UnitPasses<kPaired, kSingle> passes(kConstants, launch, unit, shared, channels);
  UnitChoice choice(kConstants, launch, unit, shared, channels);
  if (threadIdx.x == 0) shared.any = shared.largest = 0;
  choice.ClearSums();
  if (unit.is_key && choice.from_energy()) choice.ModelSteps();

  UnitEncoder<kPaired, kSingle> encoder{passes, choice, shared, unit,
                                        reinterpret_cast<int16_t*>(arena + unit.q2_at)};
  const bool steps_are_known = !unit.is_key || choice.from_energy();
  if (launch.stats == kStatsProfile && choice.has_statistics() && steps_are_known) {
    // One pass does it all, unless the profile turns out not to fit.
    choice.ProfileStatistics();
    passes.template Run<kPassLoad | kPassQuantise | kPassCheck | kPassMeasure>();
    __syncthreads();
    if (shared.any == 0) {
      choice.PublishZero();
      return;
    }
    const uint32_t before = choice.CountRaw(shared.given_raw), after = choice.CountRaw(shared.raw);
    if (after - before <= unit.tokens / 16u) {
      choice.MakeCandidate(kProfileSources);
      choice.Publish(shared.coded > 0 ? choice.ErrorSum() : 0);
      return;
    }
  } else {
    passes.template Run<kPassLoad>();
    __syncthreads();
    if (shared.any == 0) {
      choice.PublishZero();
      return;
    }
    encoder.FindSteps();
  }
  encoder.Choose(launch.stats);
  choice.ClearSums();
  passes.template Run<kPassMeasure>();
  __syncthreads();
  choice.Publish(shared.coded > 0 ? choice.ErrorSum() : 0);
}

template <bool kPaired, bool kSingle>
cudaError_t LaunchShape(const EncodeLaunch& launch, int shape, cudaStream_t stream) {
  if (launch.unit_lists[shape] == 0) return cudaSuccess;
  const int bytes = static_cast<int>(ChannelArrayBytes(launch.max_dim));
  const cudaError_t error = cudaFuncSetAttribute(
      UnitKernel<kPaired, kSingle>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  UnitKernel<kPaired, kSingle><<<launch.unit_lists[shape], kUnitThreads, bytes, stream>>>(
      launch, launch.unit_lists_at[shape]);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchUnits(const EncodeLaunch& launch, cudaStream_t stream) {
  cudaError_t error = LaunchShape<true, true>(launch, kPairedSingle, stream);
  if (error == cudaSuccess) error = LaunchShape<true, false>(launch, kPairedMulti, stream);
  if (error == cudaSuccess) error = LaunchShape<false, true>(launch, kPlainSingle, stream);
  if (error == cudaSuccess) error = LaunchShape<false, false>(launch, kPlainMulti, stream);
  return error;
}

}  // namespace latticekv::cuda
