// Decodes tiles, a warp each: rANS, lattice, reconstruction, rotary embedding and cast in one pass.
// The scalar code in core/codec/cpu is the specification; every floating-point step below is the
// single operation that it names. Rotary phases and the integer arithmetic of side values are the
// scalar code's own constexpr functions.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "core/codec/cuda/decode_kernel.h"
#include "core/codec/cuda/intrinsics.cuh"
#include "core/codec/cuda/tile_side.cuh"
#include "core/layout/rotary_phase.h"

namespace latticekv::cuda {
namespace {

constexpr DeviceConstants MakeConstants() {
  DeviceConstants out{};
  for (int i = 0; i < kTableIds; ++i) out.heads[i] = kEntropyTableHeads[i];
  for (size_t i = 0; i < std::size(out.frequencies); ++i) {
    out.frequencies[i] = kEntropyFrequencies[i];
  }
  for (int i = 0; i < 16; ++i) out.down_factors[i] = kDownFactors[i];
  for (size_t i = 0; i < std::size(out.sigma_with_noise_16); ++i) {
    out.sigma_with_noise_16[i] = kSigmaWithNoise16[i];
  }
  return out;
}
__device__ const DeviceConstants kConstants = MakeConstants();

__global__ void RopeKernel(unsigned char* arena, uint64_t tasks_at, uint32_t count) {
  const auto* tasks = reinterpret_cast<const RopeTask*>(arena + tasks_at);
  for (uint32_t n = blockIdx.y; n < count; n += gridDim.y) {
    const RopeTask task = tasks[n];
    const auto* frequencies = reinterpret_cast<const uint64_t*>(arena + task.frequencies_at);
    const unsigned char* tokens = arena + task.tokens_at;
    auto* out = reinterpret_cast<SinCos*>(arena + task.out_at);
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < task.rows * task.pairs;
         i += gridDim.x * blockDim.x) {
      const uint64_t position = task.start_position + tokens[i / task.pairs];
      out[i] = RopeSinCos(position * frequencies[i % task.pairs]);
    }
  }
}

// To nearest even, saturating; decoded numbers are finite and below 2^123, so only f16 can be.
__device__ uint32_t PackPair(float a, float b, bool bf16) {
  if (!bf16) return PackHalves(a, b);
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ void StoreElement(const UnitTask& unit, unsigned char* vector, uint32_t c, float v) {
  if (unit.element_bytes == 4) {
    reinterpret_cast<float*>(vector)[c] = v;
  } else {
    reinterpret_cast<uint16_t*>(vector)[c] =
        static_cast<uint16_t>(PackPair(v, 0, unit.is_bf16) & 0xFFFF);
  }
}

// Eight channels from `c` on; not the common case.
__device__ __noinline__ void StoreGroup(const UnitTask& unit, unsigned char* vector, uint32_t c,
                                        float4 low, float4 high) {
  if (unit.wide_stores && unit.element_bytes == 4) {
    float4* to = reinterpret_cast<float4*>(vector + 4 * c);
    to[0] = low;
    to[1] = high;
    return;
  }
  const float v[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) StoreElement(unit, vector, c + i, v[i]);
}

__device__ void Rotate(float a, float b, float2 angle, float& x, float& y) {
  x = __fsub_rn(__fmul_rn(a, angle.x), __fmul_rn(b, angle.y));
  y = __fadd_rn(__fmul_rn(b, angle.x), __fmul_rn(a, angle.y));
}

// What a lane's unit and place in the row are, in one word.
enum LaneFlag : uint32_t {
  kModeMask = 3,  // RopeMode
  kKey = 1 << 2,
  kRowsStaged = 1 << 3,
  kWide16 = 1 << 4,  // 16-bit elements, stored 16 bytes at once
  kBf16 = 1 << 5,
  kRotates = 1 << 6,  // with the lane given by kPartnerShift
  kFirst = 1 << 7,    // of the two partners
  kPartnerShift = 8,
  kPairsShift = 13,  // rotary pairs, 11 bits
  kPairsMask = 0x7FF,
  kLowBitsShift = 24  // a bit for each of the 8 channels: its lowest bits are sent as they are
};

// A lane's place among the tile's groups, and what it needs of the unit and the channels there.
struct LaneGroup {
  const UnitTask* unit = nullptr;
  uint32_t group_end = 0;
  const RowRecord* record;
  uint32_t next_record = 0;  // rows from one round to the next; 0: found anew every round
  uint32_t half_frequency = 1;
  uint32_t low_bits_at = 0;  // bytes from `mean` to the group's counts of low bits
  uint32_t flags = 0;
  uint32_t channel;  // of the output
  uint2 tables;      // bytes, one a channel
  const int4* mean;  // of the group's channels, in scratch
  const float4* step;
  const float4* angles;  // of the lane's pairs, token 0

  __device__ bool Is(uint32_t flag) const { return (flags & flag) != 0; }
  __device__ uint32_t mode() const { return flags & kModeMask; }
  __device__ uint32_t pairs() const { return flags >> kPairsShift & kPairsMask; }
  // One byte a channel.
  __device__ uint2 LowBits() const {
    return *reinterpret_cast<const uint2*>(reinterpret_cast<const unsigned char*>(mean) +
                                           low_bits_at);
  }

  // Moves to group `at` of the tile; `at` grows by 32 from call to call.
  __device__ void MoveTo(const UnitTask* units, unsigned char* arena, uint32_t at) {
    if (next_record != 0 && at < group_end) {
      record += next_record;
    } else {
      Find(units, arena, at);
    }
  }

  __device__ void Find(const UnitTask* units, unsigned char* arena, uint32_t at) {
    if (unit == nullptr) unit = units;
    while (at >= unit->group_end) ++unit;
    group_end = unit->group_end;
    const uint32_t groups_per_row = unit->dim / 8;
    half_frequency = unit->half_frequency;
    const uint32_t group = (at - unit->group_begin) % groups_per_row;
    next_record = 32 % groups_per_row == 0 ? 32 / groups_per_row : 0;
    const Resolved numbers(arena, *unit);
    record = numbers.rows + (at - unit->group_begin) / groups_per_row;
    tables = *reinterpret_cast<const uint2*>(numbers.table + 8 * group);
    const uint2 bits = *reinterpret_cast<const uint2*>(numbers.low_bits + 8 * group);
    mean = reinterpret_cast<const int4*>(numbers.mean + 8 * group);
    low_bits_at =
        static_cast<uint32_t>(numbers.low_bits + 8 * group - reinterpret_cast<const uint8_t*>(mean));
    step = reinterpret_cast<const float4*>(numbers.step + 8 * group);
    channel = 8 * group;
    flags = unit->rope_mode | (unit->is_key ? kKey : 0) |
            (unit->rope_mode == kStaged ? kRowsStaged : 0) |
            (unit->wide_stores && unit->element_bytes == 2 ? kWide16 : 0) |
            (unit->is_bf16 ? kBf16 : 0) | uint32_t{unit->pairs} << kPairsShift |
            BytesNotZero(bits) << kLowBitsShift;
    FindPartner(arena, group);
    tables.x += OpaqueZero();
    record += OpaqueZero();
  }

  // The first of two partners rotates pairs 0 to 3 of the eight, the second 4 to 7.
  __device__ void FindPartner(const unsigned char* arena, uint32_t group) {
    const uint32_t pair_groups = unit->pairs / 8;
    const bool rotates = (mode() == kNeoxPair || mode() == kInterleaved) && group < 2 * pair_groups;
    const bool first = group < pair_groups;
    const uint32_t me = WarpCoder::Lane();
    const uint32_t partner = !rotates ? me : first ? me + pair_groups : me - pair_groups;
    const uint32_t pair = 8 * (first ? group : group - pair_groups) + (first ? 0 : 4);
    flags |= (rotates ? kRotates : 0) | (first ? kFirst : 0) | (partner & 31) << kPartnerShift;
    angles = reinterpret_cast<const float4*>(arena + unit->rope_at + 8 * pair);
    if (rotates && mode() == kInterleaved) channel = 2 * pair;
  }
};

// One round: a group of 8 a lane, as numbers in the coder's scale without their means. kAll: all
// lanes are active. kLowBits: in the channels of the mask `low`, some lane sends lowest bits as
// they are; words for the round are reserved unless that is so.
template <bool kAll, bool kLowBits>
__device__ void DecodeRound(WarpCoder& coder, const LaneGroup& lane, bool active, uint32_t low,
                            int (&q)[8]) {
  uint2 splits = {0, 0};
  if constexpr (kLowBits) {
    splits = lane.LowBits();
    coder.Reserve(32 * (5 + __popc(low & 15)));
  }
  const bool half = coder.Coset<kAll>(lane.half_frequency, active);
  const uint32_t half_step = half ? kValueOne / 2 : 0;
  uint2 tables = lane.tables;
  if constexpr (kLowBits) {
    // Points of integers whose lowest bits are apart are of any parity, as those of the half coset.
    tables.x += 0x03030303u & (half ? ~0u : __vcmpne4(splits.x, 0));
    tables.y += 0x03030303u & (half ? ~0u : __vcmpne4(splits.y, 0));
  } else {
    const uint32_t shift = half ? 0x03030303u : 0u;
    tables.x += shift;
    tables.y += shift;
  }
  uint32_t parity = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if constexpr (kLowBits) {
      if (i == 4) coder.Reserve(32 * (4 + __popc(low >> 4)));
    }
    uint32_t id = ByteOf(tables, i);
    const uint32_t split = kLowBits ? ByteOf(splits, i) : 0;
    if (i == 7 && (!kLowBits || split == 0)) id += 1 + (parity & kValueOne) / kValueOne;
    uint32_t packed = coder.Packed<kAll>(id, active);
    if constexpr (kLowBits) {
      packed &= kValueMask;
      if (low >> i & 1) {
        // Of the last channel the very lowest bit is the others' parity.
        const bool last = i == 7 && split > 0;
        const uint32_t count = split - last;
        const uint32_t bits = coder.Bits(count, (kAll || active) && count > 0);
        const uint32_t k = (packed - kValueOffset * kValueOne) << count;
        const uint32_t whole = last ? 2 * (k + bits * kValueOne) + (parity & kValueOne)
                                    : k + bits * kValueOne;
        packed = whole + kValueOffset * kValueOne;
      }
    }
    parity ^= packed;
    q[i] = static_cast<int>((kLowBits ? packed : packed & kValueMask) + half_step);
  }
}

// Rotates groups whose partner is in another lane. `woven` only: all that rotate are interleaved.
__device__ void RotatePairs(const LaneGroup& lane, uint32_t token, bool active, bool woven,
                            float (&v)[8]) {
  const bool rotates = active && lane.Is(kRotates), first = lane.Is(kFirst);
  const uint32_t partner = lane.flags >> kPartnerShift & 31;
  float2 angle[4] = {};
  if (rotates) {
    const float4* from = lane.angles + token * lane.pairs() / 2;
    const float4 low = __ldcg(from), high = __ldcg(from + 1);
    angle[0] = {low.x, low.y}, angle[1] = {low.z, low.w};
    angle[2] = {high.x, high.y}, angle[3] = {high.z, high.w};
  }
  float x[4], y[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float other = __shfl_sync(kAllLanes, first ? v[4 + j] : v[j], partner);
    Rotate(first ? v[j] : other, first ? other : v[4 + j], angle[j], x[j], y[j]);
  }
  // Woven together in memory, partners need nothing back from one another.
  if (!woven) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float other = __shfl_sync(kAllLanes, first ? y[j] : x[j], partner);
      if (rotates) {
        v[j] = first ? x[j] : other;
        v[4 + j] = first ? other : y[j];
      }
    }
  }
  if (rotates && lane.mode() == kInterleaved) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      v[2 * j] = x[j];
      v[2 * j + 1] = y[j];
    }
  }
}

// Rows that end in this round, rotated by the whole warp out of `staging`, a ring over the tile's
// elements.
__device__ __noinline__ void FinishStagedRows(const unsigned char* arena, const UnitTask* of_lane,
                                              uint64_t dst, uint32_t of_token, uint32_t round_at,
                                              bool ends, const float* staging) {
  __syncwarp();
  uint32_t rows = __ballot_sync(kAllLanes, ends);
  while (rows != 0) {
    const int source = __ffs(static_cast<int>(rows)) - 1;
    rows &= rows - 1;
    const UnitTask& unit = *reinterpret_cast<const UnitTask*>(
        __shfl_sync(kAllLanes, reinterpret_cast<unsigned long long>(of_lane), source));
    auto* vector = reinterpret_cast<unsigned char*>(
        __shfl_sync(kAllLanes, static_cast<unsigned long long>(dst), source));
    const uint32_t token = __shfl_sync(kAllLanes, of_token, source);
    const uint32_t begin = 8 * (round_at + source + 1) - unit.dim;
    const auto* angles = reinterpret_cast<const float2*>(arena + unit.rope_at) + token * unit.pairs;
    for (uint32_t i = WarpCoder::Lane(); i < unit.dim - unit.pairs; i += 32) {
      const float a = staging[(begin + i) % kStagedFloats];
      const float b = staging[(begin + i + unit.pairs) % kStagedFloats];
      if (i >= unit.pairs) {
        StoreElement(unit, vector, i + unit.pairs, b);
        continue;
      }
      float x, y;
      Rotate(a, b, angles[i], x, y);
      StoreElement(unit, vector, unit.interleaved ? 2 * i : i, x);
      StoreElement(unit, vector, unit.interleaved ? 2 * i + 1 : i + unit.pairs, y);
    }
  }
  __syncwarp();
}

// A round's numbers before rotation.
__device__ void Reconstruct(const LaneGroup& lane, float row_step, const int (&q)[8],
                            float (&v)[8]) {
  const int4 mean[2] = {lane.mean[0], lane.mean[1]};
  float4 step[2] = {{row_step, row_step, row_step, row_step},
                    {row_step, row_step, row_step, row_step}};
  if (lane.Is(kKey)) step[0] = lane.step[0], step[1] = lane.step[1];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    v[4 * h] = __fmul_rn(__int2float_rn(q[4 * h] + mean[h].x), step[h].x);
    v[4 * h + 1] = __fmul_rn(__int2float_rn(q[4 * h + 1] + mean[h].y), step[h].y);
    v[4 * h + 2] = __fmul_rn(__int2float_rn(q[4 * h + 2] + mean[h].z), step[h].z);
    v[4 * h + 3] = __fmul_rn(__int2float_rn(q[4 * h + 3] + mean[h].w), step[h].w);
  }
}

__device__ void StoreRound(const LaneGroup& lane, uint64_t dst, const float (&v)[8]) {
  auto* vector = reinterpret_cast<unsigned char*>(dst);
  if (!lane.Is(kWide16)) {
    StoreGroup(*lane.unit, vector, lane.channel, {v[0], v[1], v[2], v[3]},
               {v[4], v[5], v[6], v[7]});
    return;
  }
  uint4* to = reinterpret_cast<uint4*>(vector + 2 * lane.channel);
  if (lane.Is(kBf16)) {
    *to = {PackPair(v[0], v[1], true), PackPair(v[2], v[3], true), PackPair(v[4], v[5], true),
           PackPair(v[6], v[7], true)};
  } else {
    *to = {PackHalves(v[0], v[1]), PackHalves(v[2], v[3]), PackHalves(v[4], v[5]),
           PackHalves(v[6], v[7])};
  }
}

// The same where steps vary with attention.
__device__ void ReconstructMass(const LaneGroup& lane, float factor, const int (&q)[8],
                                float (&v)[8]) {
  const float base = ScaledStep(lane.unit->step_base);  // of values
  float step[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    step[i] = lane.Is(kKey) ? reinterpret_cast<const float*>(lane.step)[i] : base;
  }
  RebuildMassRound(q, factor, reinterpret_cast<const int32_t*>(lane.mean), step, v);
}

// False when the tile's stream is damaged. kMass: as in ResolveUnit.
template <bool kMass>
__device__ bool DecodeGroups(unsigned char* arena, const TileTask& tile, const UnitTask* units,
                             WarpCoder& coder, float* staging) {
  LaneGroup lane;
  const uint32_t groups = tile.groups;
  for (uint32_t at = 0; at < groups; at += 32) {
    const bool active = at + WarpCoder::Lane() < groups;
    // Lanes past the end go through the motions with the last group.
    if (active || lane.unit == nullptr) {
      lane.MoveTo(units, arena, min(at + WarpCoder::Lane(), groups - 1));
    }
    const uint32_t of_any = __reduce_or_sync(kAllLanes, lane.flags);
    const uint32_t low = of_any >> kLowBitsShift;
    // Before the record's load: waiting for words would wait for it as well.
    if (low == 0) coder.Reserve(288);
    RowRecord record = *lane.record;
    const bool all = at + 32 <= groups;
    int q[8];
    if constexpr (kMass) {
      const int shift = TakeShift(record);
      DecodeMassRound(coder, lane.tables, shift, lane.half_frequency, active, q);
    } else if (low != 0) {
      if (all) {
        DecodeRound<true, true>(coder, lane, true, low, q);
      } else {
        DecodeRound<false, true>(coder, lane, active, low, q);
      }
    } else if (all) {
      DecodeRound<true, false>(coder, lane, true, 0, q);
    } else {
      DecodeRound<false, false>(coder, lane, active, 0, q);
    }
    if (coder.Overrun()) return false;
    float v[8];
    if constexpr (kMass) {
      ReconstructMass(lane, record.step, q, v);
    } else {
      Reconstruct(lane, record.step, q, v);
    }
    const bool staged = lane.Is(kRowsStaged);
    if (of_any & kRotates) RotatePairs(lane, record.token, active, !(of_any & kNeoxPair), v);
    if (active && !staged) StoreRound(lane, record.dst, v);
    if (of_any & kRowsStaged) {
      if (active && staged) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          staging[(8 * (at + WarpCoder::Lane()) + i) % kStagedFloats] = v[i];
        }
      }
      const bool ends = active && staged && lane.channel == lane.unit->dim - 8u;
      FinishStagedRows(arena, lane.unit, record.dst, record.token, at, ends, staging);
    }
  }
  return true;
}

template <bool kMass>
__device__ bool DecodeSymbols(unsigned char* arena, const TileTask& tile, const UnitTask* units,
                              float* staging) {
  WarpCoder coder(arena + tile.states_at, tile.words);
  for (uint32_t u = 0; u < tile.units; ++u) {
    if (units[u].coded_count == 0) continue;
    if (!ResolveUnit<kMass>(kConstants, arena, tile, units[u], coder)) return false;
  }
  return DecodeGroups<kMass>(arena, tile, units, coder, staging) && coder.Finished();
}

// kMass: the tile may have step offsets.
template <bool kMass>
__device__ bool DecodeTile(unsigned char* arena, const TileTask& tile, const UnitTask* units,
                           float* staging) {
  for (uint32_t u = 0; u < tile.units; ++u) CopyRawVectors(arena, tile, units[u]);
  if (tile.groups == 0) return true;
  if constexpr (kMass) {
    if (tile.mass) return DecodeSymbols<true>(arena, tile, units, staging);
  }
  return DecodeSymbols<false>(arena, tile, units, staging);
}

template <bool kMass>
__global__ void __launch_bounds__(32 * kWarpsPerBlock, 1) DecodeKernel(DecodeLaunch launch) {
  BuildTables(kConstants, *reinterpret_cast<SharedTables*>(shared_bytes));
  __syncthreads();
  unsigned char* arena = launch.arena_dev;
  uint32_t* counter = reinterpret_cast<uint32_t*>(arena + launch.counter_at);
  const uint32_t warp = threadIdx.x / 32;
  float* staging = reinterpret_cast<float*>(arena + launch.staging_at) +
                   size_t{kStagedFloats} * (blockIdx.x * kWarpsPerBlock + warp);
  // The first tiles in equal shares, neighbours on one multiprocessor: their rotary tables are the
  // same. The rest to whoever is free.
  const uint32_t first = min(launch.tiles, gridDim.x * kWarpsPerBlock);
  const uint32_t end = first * (blockIdx.x + 1) / gridDim.x;
  uint32_t n = first * blockIdx.x / gridDim.x + warp;
  if (n >= end) n = launch.tiles;
  while (n < launch.tiles) {
    const TileTask& tile = reinterpret_cast<const TileTask*>(arena + launch.tiles_at)[n];
    const UnitTask* units =
        reinterpret_cast<const UnitTask*>(arena + launch.units_at) + tile.first_unit;
    const bool good = DecodeTile<kMass>(arena, tile, units, staging);
    if (!good && WarpCoder::Lane() == 0) counter[1 + tile.chunk] = 1;
    uint32_t taken = 0;
    if (WarpCoder::Lane() == 0) taken = atomicAdd(counter, 1);
    n = first + __shfl_sync(kAllLanes, taken, 0);
  }
}

}  // namespace

cudaError_t LaunchRope(unsigned char* arena_dev, uint64_t tasks_at, uint32_t tasks,
                       cudaStream_t stream) {
  if (tasks == 0) return cudaSuccess;
  RopeKernel<<<dim3(16, std::min(tasks, 1024u)), 256, 0, stream>>>(arena_dev, tasks_at, tasks);
  return cudaGetLastError();
}

cudaError_t LaunchDecode(const DecodeLaunch& launch, cudaStream_t stream) {
  const cudaError_t rope =
      LaunchRope(launch.arena_dev, launch.rope_tasks_at, launch.rope_tasks, stream);
  if (rope != cudaSuccess) return rope;
  if (launch.tiles > 0) {
    const auto kernel = launch.mass ? DecodeKernel<true> : DecodeKernel<false>;
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(sizeof(SharedTables)));
    if (error != cudaSuccess) return error;
    kernel<<<launch.blocks, 32 * kWarpsPerBlock, sizeof(SharedTables), stream>>>(launch);
  }
  return cudaGetLastError();
}

}  // namespace latticekv::cuda
