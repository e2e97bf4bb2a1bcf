// Decodes tiles, a warp each: rANS, lattice, reconstruction, rotary embedding and cast in one pass.
// The scalar code in core/codec/cpu is the specification; every floating-point step below is the
// single operation that it names. Rotary phases and the integer arithmetic of side values are the
// scalar code's own constexpr functions.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "core/codec/cuda/decode_kernel.h"
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
    auto* out = reinterpret_cast<SinCos*>(arena + task.out_at);
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < task.tokens * task.pairs;
         i += gridDim.x * blockDim.x) {
      out[i] = RopeSinCos((task.start_position + i / task.pairs) * frequencies[i % task.pairs]);
    }
  }
}

// To nearest even, saturating; decoded numbers are finite and below 2^123, so only f16 can be.
__device__ uint32_t PackPair(float a, float b, bool bf16) {
  if (bf16) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
  const __half2 pair =
      __floats2half2_rn(fminf(fmaxf(a, -65504.0f), 65504.0f), fminf(fmaxf(b, -65504.0f), 65504.0f));
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

// Eight channels from `c` on.
__device__ void StoreGroup(const UnitTask& unit, unsigned char* vector, uint32_t c,
                           const float (&v)[8]) {
  if (!unit.wide_stores) {
#pragma unroll
    for (int i = 0; i < 8; ++i) StoreElement(unit, vector, c + i, v[i]);
  } else if (unit.element_bytes == 4) {
    float4* to = reinterpret_cast<float4*>(vector + 4 * c);
    to[0] = {v[0], v[1], v[2], v[3]};
    to[1] = {v[4], v[5], v[6], v[7]};
  } else {
    const bool bf16 = unit.is_bf16;
    *reinterpret_cast<uint4*>(vector + 2 * c) = {
        PackPair(v[0], v[1], bf16), PackPair(v[2], v[3], bf16), PackPair(v[4], v[5], bf16),
        PackPair(v[6], v[7], bf16)};
  }
}

__device__ void Rotate(float a, float b, float2 angle, float& x, float& y) {
  x = __fsub_rn(__fmul_rn(a, angle.x), __fmul_rn(b, angle.y));
  y = __fadd_rn(__fmul_rn(b, angle.x), __fmul_rn(a, angle.y));
}

// A lane's place among the tile's groups, and what it needs of the unit and the channels there.
struct LaneGroup {
  const UnitTask* unit = nullptr;
  uint32_t group_end = 0;
  const RowRecord* record;
  uint32_t group;            // of the row
  uint32_t next_record = 0;  // rows from one round to the next; 0: found anew every round
  uint32_t half_frequency = 1;
  uint2 tables;   // bytes, one a channel
  bool low_bits;  // some channel has them
  bool key;
  uint8_t mode;
  int mean[8];
  float step[8];

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
    key = unit->is_key;
    mode = unit->rope_mode;
    group = (at - unit->group_begin) % groups_per_row;
    next_record = 32 % groups_per_row == 0 ? 32 / groups_per_row : 0;
    const Resolved numbers(arena, *unit);
    record = numbers.rows + (at - unit->group_begin) / groups_per_row;
    tables = *reinterpret_cast<const uint2*>(numbers.table + 8 * group);
    const uint2 bits = *reinterpret_cast<const uint2*>(numbers.low_bits + 8 * group);
    low_bits = (bits.x | bits.y) != 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) mean[i] = numbers.mean[8 * group + i];
#pragma unroll
    for (int i = 0; i < 8; ++i) step[i] = key ? numbers.step[8 * group + i] : 0;
  }
};

__device__ uint32_t ByteOf(uint2 bytes, int i) {
  return __byte_perm(bytes.x, bytes.y, 0x4440 | i) & 0xFF;
}

// One round: a group of 8 a lane, as integers 4 k + 2 [half coset]. No lane has low bits. kAll: all
// lanes are active.
template <bool kAll>
__device__ void DecodeRound(WarpCoder& coder, const LaneGroup& lane, bool active, int (&q)[8]) {
  coder.Reserve(288);
  const bool half = coder.Coset<kAll>(lane.half_frequency, active);
  const uint32_t shift = half ? 0x03030303u : 0u;
  const uint2 tables = {lane.tables.x + shift, lane.tables.y + shift};
  uint32_t parity = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    uint32_t id = ByteOf(tables, i);
    if (i == 7) id += 1 + (parity & 1);
    const int k = coder.Symbol<kAll>(id, active);
    parity ^= static_cast<uint32_t>(k);
    q[i] = 4 * k + (half ? 2 : 0);
  }
}

// The same where some lanes have channels whose lowest bits are sent as they are. Apart, and all by
// value but for copies, so that it costs the common round no registers.
struct SlowRound {
  WarpCoder coder;
  int q[8];
};
__device__ __noinline__ void DecodeRoundWithLowBits(SlowRound& round, const uint8_t* table_of,
                                                    const uint8_t* low_bits_of,
                                                    uint32_t half_frequency, bool active) {
  WarpCoder& coder = round.coder;
  coder.Reserve(32);
  const bool half = coder.Coset(half_frequency, active);
  uint32_t parity = 0;
  for (int i = 0; i < 8; ++i) {
    const uint32_t split = low_bits_of[i];
    uint32_t id = table_of[i] + (half || split > 0 ? 3 : 0);
    if (i == 7 && split == 0) id += 1 + (parity & 1);
    coder.Reserve(64);
    int k = coder.Symbol(id, active);
    const uint32_t count = split - (i == 7 && split > 0);
    const uint32_t bits = coder.Bits(count, active && count > 0);
    k = k * (1 << count) + static_cast<int>(bits);
    if (i == 7 && split > 0) k = 2 * k + static_cast<int>(parity & 1);
    parity ^= static_cast<uint32_t>(k);
    round.q[i] = 4 * k + (half ? 2 : 0);
  }
}

// Rotates groups whose partner is in another lane, and gives the channel where the result goes.
__device__ void RotatePairs(const unsigned char* arena, const LaneGroup& lane, uint32_t token,
                            bool active, float (&v)[8], uint32_t& channel) {
  const UnitTask& unit = *lane.unit;
  const uint32_t pairs = unit.pairs, pair_groups = pairs / 8;
  const bool rotates = active && (lane.mode == kNeoxPair || lane.mode == kInterleaved) &&
                       lane.group < 2 * pair_groups;
  const bool first = lane.group < pair_groups;
  const uint32_t me = WarpCoder::Lane();
  const uint32_t partner = !rotates ? me : first ? me + pair_groups : me - pair_groups;
  const uint32_t pair = 8 * (first ? lane.group : lane.group - pair_groups) + (first ? 0 : 4);
  float2 angle[4] = {};
  if (rotates) {
    const float4* from =
        reinterpret_cast<const float4*>(arena + unit.rope_at + 8 * (token * pairs + pair));
    const float4 low = __ldcg(from), high = __ldcg(from + 1);
    angle[0] = {low.x, low.y}, angle[1] = {low.z, low.w};
    angle[2] = {high.x, high.y}, angle[3] = {high.z, high.w};
  }
  // The first of two partners rotates pairs 0 to 3 of the eight, the second 4 to 7.
  float x[4], y[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float other = __shfl_sync(kAllLanes, first ? v[4 + j] : v[j], partner);
    Rotate(first ? v[j] : other, first ? other : v[4 + j], angle[j], x[j], y[j]);
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float other = __shfl_sync(kAllLanes, first ? y[j] : x[j], partner);
    if (rotates) {
      v[j] = first ? x[j] : other;
      v[4 + j] = first ? other : y[j];
    }
  }
  // Woven together in memory, partners need nothing back from one another.
  if (rotates && lane.mode == kInterleaved) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      v[2 * j] = x[j];
      v[2 * j + 1] = y[j];
    }
    channel = 2 * pair;
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

// False when the tile's stream is damaged.
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
    const RowRecord record = *lane.record;
    int q[8];
    if (__any_sync(kAllLanes, lane.low_bits)) {
      SlowRound round{coder};
      const Resolved numbers(arena, *lane.unit);
      DecodeRoundWithLowBits(round, numbers.table + 8 * lane.group,
                             numbers.low_bits + 8 * lane.group, lane.half_frequency, active);
      coder = round.coder;
#pragma unroll
      for (int i = 0; i < 8; ++i) q[i] = round.q[i];
    } else if (at + 32 <= groups) {
      DecodeRound<true>(coder, lane, true, q);
    } else {
      DecodeRound<false>(coder, lane, active, q);
    }
    if (coder.Overrun()) return false;
    float v[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      v[i] = __fmul_rn(__int2float_rn(q[i] + lane.mean[i]), lane.key ? lane.step[i] : record.step);
    }
    uint32_t channel = 8 * lane.group;
    const bool staged = lane.mode == kStaged;
    if (__any_sync(kAllLanes, lane.mode != kDirect && !staged)) {
      RotatePairs(arena, lane, record.token, active, v, channel);
    }
    if (active && !staged) {
      StoreGroup(*lane.unit, reinterpret_cast<unsigned char*>(record.dst), channel, v);
    }
    if (__any_sync(kAllLanes, active && staged)) {
      if (active && staged) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          staging[(8 * (at + WarpCoder::Lane()) + i) % kStagedFloats] = v[i];
        }
      }
      const bool ends = active && staged && lane.group == lane.unit->dim / 8u - 1;
      FinishStagedRows(arena, lane.unit, record.dst, record.token, at, ends, staging);
    }
  }
  return true;
}

__device__ bool DecodeTile(unsigned char* arena, const TileTask& tile, const UnitTask* units,
                           float* staging) {
  for (uint32_t u = 0; u < tile.units; ++u) CopyRawVectors(arena, tile, units[u]);
  if (tile.groups == 0) return true;
  WarpCoder coder(arena + tile.states_at, tile.words);
  for (uint32_t u = 0; u < tile.units; ++u) {
    if (units[u].coded_count == 0) continue;
    if (!ResolveUnit(kConstants, arena, tile, units[u], coder)) return false;
  }
  return DecodeGroups(arena, tile, units, coder, staging) && coder.Finished();
}

__global__ void __launch_bounds__(32 * kWarpsPerBlock, 1) DecodeKernel(DecodeLaunch launch) {
  BuildTables(kConstants, *reinterpret_cast<SharedTables*>(shared_bytes));
  __syncthreads();
  unsigned char* arena = launch.arena_dev;
  uint32_t* counter = reinterpret_cast<uint32_t*>(arena + launch.counter_at);
  const uint32_t warp = threadIdx.x / 32;
  float* staging = reinterpret_cast<float*>(arena + launch.staging_at) +
                   size_t{kStagedFloats} * (blockIdx.x * kWarpsPerBlock + warp);
  // The first tiles go round the multiprocessors, the rest to whoever is free.
  uint32_t n = warp * gridDim.x + blockIdx.x;
  while (n < launch.tiles) {
    const TileTask& tile = reinterpret_cast<const TileTask*>(arena + launch.tiles_at)[n];
    const UnitTask* units =
        reinterpret_cast<const UnitTask*>(arena + launch.units_at) + tile.first_unit;
    const bool good = DecodeTile(arena, tile, units, staging);
    if (!good && WarpCoder::Lane() == 0) counter[1 + tile.chunk] = 1;
    uint32_t taken = 0;
    if (WarpCoder::Lane() == 0) taken = atomicAdd(counter, 1);
    n = gridDim.x * kWarpsPerBlock + __shfl_sync(kAllLanes, taken, 0);
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
    const cudaError_t error =
        cudaFuncSetAttribute(DecodeKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(sizeof(SharedTables)));
    if (error != cudaSuccess) return error;
    DecodeKernel<<<launch.blocks, 32 * kWarpsPerBlock, sizeof(SharedTables), stream>>>(launch);
  }
  return cudaGetLastError();
}

}  // namespace latticekv::cuda
