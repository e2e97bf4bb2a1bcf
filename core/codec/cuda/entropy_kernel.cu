// Codes the symbols of tiles, a warp each: 32 rANS states, lane = thread, words shared. The scalar
// originals are core/codec/cpu/rans.h and tile_coder.cc.
#include "core/codec/cuda/encode_constants.cuh"
#include "core/codec/cuda/encode_kernels.h"
#include "core/codec/cuda/intrinsics.cuh"

namespace latticekv::cuda {
namespace {

constexpr uint32_t kEntropyThreads = 256;
constexpr uint32_t kEntropyBlocks = 4;  // of a multiprocessor
constexpr uint32_t kEntropyWarps = kEntropyThreads / 32;
constexpr uint32_t kEveryLane = 0xFFFFFFFFu;
constexpr uint32_t kRansLow = 1u << 16;

// floor(2^32 / frequency), the largest number that fits for 1; frequency | start << 16.
struct alignas(8) Entry {
  uint32_t reciprocal;
  uint32_t range;
};
extern __shared__ __align__(16) unsigned char shared_bytes_of_entries[];

constexpr uint32_t Reciprocal(uint32_t frequency) {
  return frequency <= 1 ? 0xFFFFFFFFu : static_cast<uint32_t>((uint64_t{1} << 32) / frequency);
}

struct alignas(16) EntropyConstants {
  Entry entry[kTableIds][kSymbolSpan];
  uint32_t reciprocal[kProbabilityTotal + 1];  // of cosets
};
constexpr EntropyConstants MakeEntropyConstants() {
  EntropyConstants out{};
  constexpr EncodeConstants kRanges = MakeEncodeConstants();
  for (int id = 0; id < kTableIds; ++id) {
    for (int i = 0; i < kSymbolSpan; ++i) {
      const uint32_t range = kRanges.entry[id][i];
      out.entry[id][i] = {Reciprocal(range & 0xFFFF), range};
    }
  }
  for (uint32_t f = 0; f <= kProbabilityTotal; ++f) out.reciprocal[f] = Reciprocal(f);
  return out;
}
__device__ const EntropyConstants kEntropy = MakeEntropyConstants();
constexpr uint32_t kEntryBytes = sizeof(EntropyConstants::entry);
static_assert(kEntryBytes % 16 == 0);

// A warp's coder. Every method is called by all lanes together.
class WarpEncoder {
 public:
  __device__ WarpEncoder(uint16_t* words, uint32_t room) : words_(words), first_(room) {
    before_ = (1u << (threadIdx.x % 32)) - 1;
  }
  // kAll: every lane is active.
  template <bool kAll = false>
  __device__ void Symbol(Entry e, bool active) {
    const uint32_t frequency = e.range & 0xFFFF, start = e.range >> 16;
    // At least 1 where the symbol is in its table, so that inactive lanes emit nothing.
    Emit(kAll || active ? (frequency << 22) - 1 : 0xFFFFFFFFu);
    // The quotient by a reciprocal rounded down is right or one too small.
    const uint32_t quotient = __umulhi(x_, e.reciprocal), rest = x_ - quotient * frequency;
    uint32_t x = (quotient << kProbabilityBits) + rest + start;
    if (rest >= frequency) x += kProbabilityTotal - frequency;
    if (kAll || active) x_ = x;
  }
  __device__ void Bits(uint32_t bits, uint32_t count, bool active) {
    active = active && count > 0;
    Emit(active ? (1u << (32 - count)) - 1 : 0xFFFFFFFFu);
    if (active) x_ = x_ << count | bits;
  }
  __device__ uint32_t state() const { return x_; }
  __device__ uint32_t first() const { return first_; }

 private:
  // Lanes whose states are above `most` put their words in order of the lanes. One comparison for
  // vote and stores, which the compiler would make two of.
  __device__ void Emit(uint32_t most) {
    asm volatile(
        "{\n\t.reg .pred p;\n\t.reg .b16 word;\n\t.reg .b32 emitters, n;\n\t.reg .b64 at;\n\t"
        "setp.gt.u32 p, %0, %2;\n\t"
        "vote.sync.ballot.b32 emitters, p, 0xffffffff;\n\t"
        "popc.b32 n, emitters;\n\t"
        "sub.u32 %1, %1, n;\n\t"
        "and.b32 n, emitters, %3;\n\t"
        "popc.b32 n, n;\n\t"
        "add.u32 n, n, %1;\n\t"
        "mad.wide.u32 at, n, 2, %4;\n\t"
        "cvt.u16.u32 word, %0;\n\t"
        "@p st.global.u16 [at], word;\n\t"
        "@p shr.u32 %0, %0, 16;\n\t}"
        : "+r"(x_), "+r"(first_)
        : "r"(most), "r"(before_), "l"(words_));
  }
  uint16_t* words_;
  uint32_t first_;
  uint32_t before_;
  uint32_t x_ = kRansLow;
};

// Arrays behind a UnitResult.
struct ResultArrays {
  const uint8_t* order;
  const int32_t* values[3];
  const uint8_t* table;
  const uint8_t* low_bits;
  __device__ ResultArrays(const UnitResult* result, uint32_t dim) {
    order = reinterpret_cast<const uint8_t*>(result + 1);
    values[0] = reinterpret_cast<const int32_t*>(order + kUnitOrderBytes);
    values[1] = values[0] + StepRoom(dim);
    values[2] = values[1] + dim;
    table = reinterpret_cast<const uint8_t*>(values[2] + dim);
    low_bits = table + dim;
  }
};

__device__ void EncodeSide(const Entry* entries, const int32_t* values, uint32_t count,
                           uint32_t spread, uint32_t bits, WarpEncoder& coder) {
  const uint32_t lane = threadIdx.x % 32;
  const Entry* table = entries + TableId(static_cast<int>(spread), bits > 0, kAll) * kSymbolSpan;
  for (uint32_t end = count; end > 0;) {
    const uint32_t at = (end - 1) / 32 * 32;
    const bool active = at + lane < end;
    const int value = active ? values[at + lane] : 0;
    if (bits > 0) coder.Bits(static_cast<uint32_t>(value) & ((1u << bits) - 1), bits, active);
    coder.Symbol(table[(value >> bits) + kSymbolOffset], active);
    end = at;
  }
}

// A lane's walk backwards over the groups of a tile.
class GroupWalk {
 public:
  __device__ GroupWalk(const EncodeLaunch& launch, const EncodeTile& tile)
      : arena_(launch.arena_dev),
        units_(reinterpret_cast<const EncodeUnit*>(arena_ + launch.units_at) + tile.first_unit) {
    for (uint32_t u = 0; u < tile.units; ++u) total_ += Groups(u);
    unit_ = tile.units;
    begin_ = total_;
  }
  __device__ uint32_t total() const { return total_; }

  // Moves to group `at`, 32 below the one before. Points of the next group and the token of the one
  // behind it are on their way meanwhile.
  __device__ void MoveTo(uint32_t at) {
    if (unit_found_ && at >= begin_ && row_stride_ != 0) {
      row_ -= row_stride_;
      points = next_points_;
    } else {
      if (unit_found_ && at >= begin_) {
        Place(at);
      } else {
        Find(at);
      }
      points = PointsOf(order_[row_]);
      if (row_stride_ != 0 && at >= begin_ + 32) next_token_ = order_[row_ - row_stride_];
      AwaitLoads();
    }
    if (row_stride_ == 0 || at < begin_ + 32) return;
    next_points_ = PointsOf(next_token_);
    if (at >= begin_ + 64) next_token_ = order_[row_ - 2 * row_stride_];
  }

  uint4 points = {0, 0, 0, 0};  // of the group, i16
  uint2 tables = {0, 0};        // bytes, one a channel
  uint2 low_bits = {0, 0};
  Entry coset[2] = {{0, 1}, {0, 1}};  // of the integer and the half one

 private:
  __device__ void AwaitLoads() {
    const uint32_t zero = OpaqueZero();
    points.x += zero;
    next_token_ += zero;
    tables.x += zero;
    low_bits.x += zero;
    coset[0].reciprocal += zero;
    coset[1].reciprocal += zero;
  }
  __device__ uint4 PointsOf(uint32_t token) const {
    return *reinterpret_cast<const uint4*>(q2_ + (token * dim_ + 8 * group_));
  }
  __device__ const UnitResult& Result(uint32_t u) const {
    return *reinterpret_cast<const UnitResult*>(arena_ + units_[u].result_at);
  }
  __device__ uint32_t Groups(uint32_t u) const {
    return Result(u).coded_count * (units_[u].dim / 8u);
  }
  __device__ void Find(uint32_t at) {
    while (at < begin_) begin_ -= Groups(--unit_);
    unit_found_ = true;
    const EncodeUnit& unit = units_[unit_];
    const UnitResult& result = Result(unit_);
    const ResultArrays arrays(&result, unit.dim);
    dim_ = unit.dim;
    q2_ = reinterpret_cast<const int16_t*>(arena_ + unit.q2_at);
    order_ = arrays.order + result.raw_count;
    const uint32_t half = HalfCosetFrequency(result.coset), whole = kProbabilityTotal - half;
    coset[0] = {kEntropy.reciprocal[whole], whole};
    coset[1] = {kEntropy.reciprocal[half], half | whole << 16};
    const uint32_t row_groups = dim_ / 8;
    row_stride_ = 32 % row_groups == 0 ? 32 / row_groups : 0;
    Place(at);
  }
  __device__ void Place(uint32_t at) {
    const uint32_t row_groups = dim_ / 8;
    row_ = (at - begin_) / row_groups;
    group_ = (at - begin_) % row_groups;
    const ResultArrays arrays(&Result(unit_), dim_);
    tables = *reinterpret_cast<const uint2*>(arrays.table + 8 * group_);
    low_bits = *reinterpret_cast<const uint2*>(arrays.low_bits + 8 * group_);
  }

  const unsigned char* arena_;
  const EncodeUnit* units_;
  const int16_t* q2_ = nullptr;
  const uint8_t* order_ = nullptr;
  uint32_t unit_, begin_, total_ = 0;
  uint32_t dim_ = 8, row_ = 0, group_ = 0, row_stride_ = 0;
  uint4 next_points_ = {0, 0, 0, 0};
  uint32_t next_token_ = 0;
  bool unit_found_ = false;
};

__device__ int PointOf(uint4 points, int i) {
  const uint32_t word = i < 2 ? points.x : i < 4 ? points.y : i < 6 ? points.z : points.w;
  return i % 2 ? static_cast<int32_t>(word) >> 16 : static_cast<int16_t>(word & 0xFFFF);
}

// A round: a group a lane, last coordinate first. kAll: every lane is active. kLowBits: in the
// channels of the mask `low`, some lane sends lowest bits as they are.
template <bool kAll, bool kLowBits>
__device__ void EncodeRound(const Entry* entries, const GroupWalk& group, bool active,
                            WarpEncoder& coder, uint32_t low = 0) {
  const uint4 points = group.points;
  const int half = points.x & 1;
  uint2 tables = group.tables;
  if constexpr (kLowBits) {
    // Points of integers whose lowest bits are apart are of any parity, as those of the half coset.
    tables.x += 0x03030303u & (half ? ~0u : __vcmpne4(group.low_bits.x, 0));
    tables.y += 0x03030303u & (half ? ~0u : __vcmpne4(group.low_bits.y, 0));
  } else {
    const uint32_t shift = half ? 0x03030303u : 0u;
    tables.x += shift;
    tables.y += shift;
  }
#pragma unroll
  for (int i = 7; i >= 0; --i) {
    const int k = PointOf(points, i) >> 1;
    uint32_t id = ByteOf(tables, i);
    int symbol = k;
    if (kLowBits && (low >> i & 1)) {
      const uint32_t bits = ByteOf(group.low_bits, i);
      const bool last = i == 7 && bits > 0;  // whose very lowest bit is the others' parity
      const uint32_t sent = bits - last;
      coder.Bits(static_cast<uint32_t>(k >> last) & ((1u << sent) - 1), sent, kAll || active);
      symbol = k >> bits;
      if (i == 7 && bits == 0) id += 1 + (k & 1);
    } else if (i == 7) {
      id += 1 + (k & 1);
    }
    coder.Symbol<kAll>(entries[id * kSymbolSpan + symbol + kSymbolOffset], active);
  }
  coder.Symbol<kAll>(half ? group.coset[1] : group.coset[0], active);
}

__device__ void EncodeTileOf(const EncodeLaunch& launch, const Entry* entries, EncodeTile& tile) {
  const uint32_t lane = threadIdx.x % 32;
  unsigned char* arena = launch.arena_dev;
  const auto* units =
      reinterpret_cast<const EncodeUnit*>(arena + launch.units_at) + tile.first_unit;
  bool any_low_bits = false;
  uint32_t size = 0;
  for (uint32_t u = 0; u < tile.units; ++u) {
    const auto& result = *reinterpret_cast<const UnitResult*>(arena + units[u].result_at);
    any_low_bits |= result.any_low_bits;
    const bool lists = !(result.modes >> 6 & 1);
    size += 9 + (lists ? result.raw_count : 0) + result.raw_count * units[u].vector_bytes;
  }
  WarpEncoder coder(reinterpret_cast<uint16_t*>(arena + tile.words_at), tile.room);
  GroupWalk walk(launch, tile);
  for (uint32_t end = walk.total(); end > 0;) {
    const uint32_t at = (end - 1) / 32 * 32;
    const bool active = at + lane < end;
    if (active) walk.MoveTo(at + lane);
    const bool all = at + 32 <= end;
    const uint32_t low =
        any_low_bits ? __reduce_or_sync(kEveryLane, BytesNotZero(walk.low_bits)) : 0;
    if (low != 0) {
      if (all) {
        EncodeRound<true, true>(entries, walk, true, coder, low);
      } else {
        EncodeRound<false, true>(entries, walk, active, coder, low);
      }
    } else if (all) {
      EncodeRound<true, false>(entries, walk, true, coder);
    } else {
      EncodeRound<false, false>(entries, walk, active, coder);
    }
    end = at;
  }
  for (uint32_t u = tile.units; u-- > 0;) {
    const auto& r = *reinterpret_cast<const UnitResult*>(arena + units[u].result_at);
    const ResultArrays arrays(&r, units[u].dim);
    EncodeSide(entries, arrays.values[2], r.sigma_count, r.sigma_spread, r.sigma_bits, coder);
    EncodeSide(entries, arrays.values[1], r.mean_count, r.mean_spread, r.mean_bits, coder);
    EncodeSide(entries, arrays.values[0], r.step_count, r.step_spread, r.step_bits, coder);
  }
  reinterpret_cast<uint32_t*>(arena + tile.states_at)[lane] = coder.state();
  if (lane != 0) return;
  const bool coded = walk.total() > 0;
  tile.words = coded ? tile.room - coder.first() : 0;
  tile.size_bytes = size + (coded ? 128 + 2 * tile.words : 0);
}

__global__ void __launch_bounds__(kEntropyThreads, kEntropyBlocks)
    EntropyKernel(EncodeLaunch launch) {
  Entry* entries = reinterpret_cast<Entry*>(shared_bytes_of_entries);
  for (uint32_t i = threadIdx.x; i < kEntryBytes / 16; i += kEntropyThreads) {
    reinterpret_cast<uint4*>(entries)[i] = reinterpret_cast<const uint4*>(&kEntropy.entry)[i];
  }
  __syncthreads();
  unsigned char* arena = launch.arena_dev;
  uint32_t* counter = reinterpret_cast<uint32_t*>(arena + launch.counter_at);
  uint32_t n = threadIdx.x / 32 * gridDim.x + blockIdx.x;
  while (n < launch.tiles) {
    EncodeTileOf(launch, entries, reinterpret_cast<EncodeTile*>(arena + launch.tiles_at)[n]);
    uint32_t taken = 0;
    if (threadIdx.x % 32 == 0) taken = atomicAdd(counter, 1);
    n = gridDim.x * kEntropyWarps + __shfl_sync(kEveryLane, taken, 0);
  }
}

}  // namespace

cudaError_t LaunchEntropy(const EncodeLaunch& launch, cudaStream_t stream) {
  if (launch.tiles == 0) return cudaSuccess;
  const cudaError_t error =
      cudaFuncSetAttribute(EntropyKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kEntryBytes);
  if (error != cudaSuccess) return error;
  // No more blocks than have a tile for every warp: idle warps would keep room from other streams.
  const uint32_t filled = (launch.tiles + kEntropyWarps - 1) / kEntropyWarps;
  const uint32_t most = kEntropyBlocks * launch.blocks, blocks = filled < most ? filled : most;
  EntropyKernel<<<blocks, kEntropyThreads, kEntryBytes, stream>>>(launch);
  return cudaGetLastError();
}

}  // namespace latticekv::cuda
