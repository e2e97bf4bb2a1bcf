// Units whose statistics are the profile's, in one pass. What does not fit is left to the kernels of
// unit_kernel.cuh.
#include "core/codec/cuda/fused_rows.cuh"

namespace latticekv::cuda {
namespace {

// Blocks of a multiprocessor. Three leave 80 registers a thread, of which values spill little;
// keys, which also rotate and sum by channel, are faster with two.
template <bool kKey>
constexpr int kFusedBlocks = kKey ? 2 : 3;

template <bool kKey, bool kBf16>
__global__ void __launch_bounds__(kUnitThreads, kFusedBlocks<kKey>)
    FusedKernel(EncodeLaunch launch, uint64_t list_at) {
  __shared__ UnitShared shared;
  __shared__ FusedUnit fused;
  StartFused(launch, list_at, fused, shared);
  const EncodeUnit& unit = fused.unit;
  const ChannelArrays channels(channel_bytes, unit.dim);
  const SliceConstants constants(channel_bytes + ChannelArrayBytes(unit.dim), unit.dim);
  UnitChoice choice(kConstants, launch, unit, shared, channels);
  if (!choice.has_statistics()) return LeaveUnit(launch, unit);
  choice.ClearSums();
  if (kKey) choice.ModelSteps();
  choice.ProfileStatistics();
  const bool low_bits = FillSlices(unit, channels, constants);

  FusedRows<kKey, kBf16> rows(launch, unit, shared, constants, fused.row_at);
  if constexpr (!kKey) rows.FindSteps(launch.value_unit_16);
  uint32_t sums[16] = {};
  rows.template Run<true>(low_bits, sums);
  if (kKey) rows.AddTo(channels.sum32, sums);
  __syncthreads();
  if (shared.any == 0) {
    choice.PublishZero();
    return;
  }
  const uint32_t before = choice.CountRaw(shared.given_raw), after = choice.CountRaw(shared.raw);
  if (after - before > unit.tokens / 16u) return LeaveUnit(launch, unit);
  choice.MakeCandidate({kSourceProfile, kStepProfile});
  choice.Publish(shared.coded > 0 ? choice.ErrorSum() : 0);
}

}  // namespace

cudaError_t LaunchFused(const EncodeLaunch& launch, cudaStream_t stream) {
  if (launch.stats != kStatsProfile) return LaunchFusedOwn(launch, stream);
  const uint32_t bytes = SliceConstants::Bytes(launch.max_dim);
  cudaError_t error = cudaSuccess;
  const auto add = [&](auto kernel, int list) {
    if (error == cudaSuccess) error = LaunchFusedList(kernel, launch, list, bytes, stream);
  };
  add(FusedKernel<false, false>, kFusedValues);
  add(FusedKernel<false, true>, kFusedValues + 1);
  add(FusedKernel<true, false>, kFusedKeysByEnergy);
  add(FusedKernel<true, true>, kFusedKeysByEnergy + 1);
  return error;
}

}  // namespace latticekv::cuda
