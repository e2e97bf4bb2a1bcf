// Quantises units, a block each: everything of encoding but the entropy coder. A header, so that
// every shape of slices compiles by itself.
#ifndef LATTICEKV_CORE_CODEC_CUDA_UNIT_KERNEL_CUH_
#define LATTICEKV_CORE_CODEC_CUDA_UNIT_KERNEL_CUH_

#include <algorithm>

#include "core/codec/cuda/encode_kernels.h"
#include "core/codec/cuda/unit_choice.cuh"

namespace latticekv::cuda {
namespace {

__device__ const EncodeConstants kConstants = MakeEncodeConstants();
extern __shared__ __align__(16) unsigned char channel_bytes[];

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

  // Under own ones. Outliers are left out of means and spreads: where there are some, both are
  // taken again, once.
  __device__ void QuantiseWithOwn() {
    choice.ForgetOutliers();
    for (int n = 0; n < 2; ++n) {
      passes.template Run<kPassMeans>();
      __syncthreads();
      choice.OwnMeans();
      passes.template Run<kPassQuantise | kPassSquares>();
      __syncthreads();
      choice.OwnSigmas();
      passes.template Run<kPassCheck>();
      __syncthreads();
      if (n > 0 || shared.marked == 0) return;
      choice.ClearSums();
    }
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

// What a block works on.
template <bool kPaired, bool kSingle>
struct UnitBlock {
  const EncodeUnit unit;
  const ChannelArrays channels;
  UnitPasses<kPaired, kSingle> passes;
  UnitChoice choice;
  __device__ UnitBlock(const EncodeLaunch& launch, uint32_t index, UnitShared& shared)
      : unit(reinterpret_cast<const EncodeUnit*>(launch.arena_dev + launch.units_at)[index]),
        channels(channel_bytes, unit.dim),
        passes(kConstants, launch, unit, shared, channels),
        choice(kConstants, launch, unit, shared, channels) {}

  __device__ UnitResult& result(const EncodeLaunch& launch) const {
    return *reinterpret_cast<UnitResult*>(launch.arena_dev + unit.result_at);
  }
  __device__ void Start(UnitShared& shared) {
    if (threadIdx.x == 0) shared.any = shared.largest = 0;
    choice.ClearSums();
    if (unit.is_key && choice.from_energy()) choice.ModelSteps();
  }
};

// Whether a unit still waits for the one-pass kernel, or for the other.
__device__ inline bool IsPending(const EncodeLaunch& launch, uint32_t index, bool one_pass) {
  const unsigned char* arena = launch.arena_dev;
  const EncodeUnit& unit = reinterpret_cast<const EncodeUnit*>(arena + launch.units_at)[index];
  if (one_pass) return !unit.fused;
  const bool taken_before = unit.fused || launch.stats == kStatsProfile;
  return !taken_before ||
         reinterpret_cast<const UnitResult*>(arena + unit.result_at)->pending != 0;
}

// The units of a list that a fused kernel takes first are looked at by few blocks, which have
// nothing to do when it left none.
struct UnitList {
  uint64_t at;
  uint32_t units;
  bool all_fused;
};
template <typename F>
__device__ void ForEachUnit(const EncodeLaunch& launch, const UnitList& list, F f) {
  const unsigned char* arena = launch.arena_dev;
  const uint32_t left = reinterpret_cast<const uint32_t*>(arena + launch.counter_at)[1];
  if (list.all_fused && left == 0) return;
  for (uint32_t n = blockIdx.x; n < list.units; n += gridDim.x) {
    f(reinterpret_cast<const uint32_t*>(arena + list.at)[n]);
    __syncthreads();
  }
}

// Statistics and steps known beforehand: one pass does it all. Units that it does not fit are left
// to UnitKernel.
template <bool kPaired, bool kSingle>
__device__ void EncodeInOnePass(const EncodeLaunch& launch, uint32_t index, UnitShared& shared) {
  if (!IsPending(launch, index, true)) return;
  UnitBlock<kPaired, kSingle> block(launch, index, shared);
  UnitChoice& choice = block.choice;
  if (!choice.has_statistics() || (block.unit.is_key && !choice.from_energy())) {
    if (threadIdx.x == 0) block.result(launch).pending = 1;
    return;
  }
  block.Start(shared);
  choice.ProfileStatistics();
  block.passes.template Run<kPassLoad | kPassQuantise | kPassCheck | kPassMeasure>();
  __syncthreads();
  if (shared.any == 0) {
    choice.PublishZero();
    return;
  }
  const uint32_t before = choice.CountRaw(shared.given_raw), after = choice.CountRaw(shared.raw);
  if (after - before > block.unit.tokens / 16u) {
    if (threadIdx.x == 0) block.result(launch).pending = 1;
    return;
  }
  choice.MakeCandidate(kProfileSources);
  choice.Publish(shared.coded > 0 ? choice.ErrorSum() : 0);
}

template <bool kPaired, bool kSingle>
__device__ void EncodeInPasses(const EncodeLaunch& launch, uint32_t index, UnitShared& shared) {
  if (!IsPending(launch, index, false)) return;
  UnitBlock<kPaired, kSingle> block(launch, index, shared);
  block.Start(shared);
  block.passes.template Run<kPassLoad>();
  __syncthreads();
  UnitChoice& choice = block.choice;
  if (shared.any == 0) {
    choice.PublishZero();
    return;
  }
  UnitEncoder<kPaired, kSingle> encoder{
      block.passes, choice, shared, block.unit,
      reinterpret_cast<int16_t*>(launch.arena_dev + block.unit.q2_at)};
  encoder.FindSteps();
  encoder.Choose(launch.stats);
  choice.ClearSums();
  block.passes.template Run<kPassMeasure>();
  __syncthreads();
  choice.Publish(shared.coded > 0 ? choice.ErrorSum() : 0);
}

template <bool kPaired, bool kSingle>
__global__ void __launch_bounds__(kUnitThreads, 2)
    OnePassKernel(EncodeLaunch launch, UnitList list) {
  __shared__ UnitShared shared;
  ForEachUnit(launch, list,
              [&](uint32_t index) { EncodeInOnePass<kPaired, kSingle>(launch, index, shared); });
}

template <bool kPaired, bool kSingle>
__global__ void __launch_bounds__(kUnitThreads, kPaired&& kSingle ? 2 : 1)
    UnitKernel(EncodeLaunch launch, UnitList list) {
  __shared__ UnitShared shared;
  ForEachUnit(launch, list,
              [&](uint32_t index) { EncodeInPasses<kPaired, kSingle>(launch, index, shared); });
}

}  // namespace

// Enqueues the units of the shape.
template <bool kPaired, bool kSingle>
cudaError_t LaunchShape(const EncodeLaunch& launch, int shape, cudaStream_t stream) {
  const uint32_t units = launch.unit_lists[shape];
  if (units == 0) return cudaSuccess;
  const int bytes = static_cast<int>(ChannelArrayBytes(launch.max_dim));
  cudaError_t error = cudaFuncSetAttribute(UnitKernel<kPaired, kSingle>,
                                           cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  error = cudaFuncSetAttribute(OnePassKernel<kPaired, kSingle>,
                               cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  uint32_t fused = 0;
  for (uint32_t n : launch.fused_lists) fused += n;
  const UnitList list{launch.unit_lists_at[shape], units, shape == kPairedSingle && fused == units};
  const uint32_t blocks = list.all_fused ? std::min(units, 2 * launch.blocks) : units;
  if (launch.stats == kStatsProfile) {
    OnePassKernel<kPaired, kSingle><<<blocks, kUnitThreads, bytes, stream>>>(launch, list);
  }
  UnitKernel<kPaired, kSingle><<<blocks, kUnitThreads, bytes, stream>>>(launch, list);
  return cudaGetLastError();
}

}  // namespace latticekv::cuda

#endif  // LATTICEKV_CORE_CODEC_CUDA_UNIT_KERNEL_CUH_
