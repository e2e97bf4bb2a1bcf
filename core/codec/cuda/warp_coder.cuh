// The 32-lane rANS decoder as a warp reads it: lane = thread, words shared through a ring in shared
// memory. The scalar original is core/codec/cpu/rans.h.
#ifndef LATTICEKV_CORE_CODEC_CUDA_WARP_CODER_CUH_
#define LATTICEKV_CORE_CODEC_CUDA_WARP_CODER_CUH_

#include <cstddef>
#include <cstdint>

#include "core/codec/cuda/decode_tasks.h"
#include "core/codec/entropy_tables.h"
#include "core/codec/side_arithmetic.h"

namespace latticekv::cuda {

inline constexpr uint32_t kAllLanes = 0xFFFFFFFFu;
inline constexpr uint32_t kLow = 1u << 16;  // states that have not been damaged are not below it
inline constexpr int kMaxSymbols = 49;      // of a table
inline constexpr uint32_t kRingWords = 512;

// The format's tables for the device, in the order of the host's.
struct DeviceConstants {
  EntropyTableHead heads[kTableIds];
  uint16_t frequencies[sizeof(kEntropyFrequencies) / sizeof(uint16_t)];
  uint32_t down_factors[16];
  int8_t sigma_with_noise_16[sizeof(kSigmaWithNoise16)];
};

// Two look-ups decode a symbol: slot -> 4 * its number in the table, number -> packed symbol. One
// look-up would need 288 KiB. At the start of the block's dynamic shared memory.
struct SharedTable {
  uint8_t slot[kProbabilityTotal];
  uint32_t symbol[kMaxSymbols];
};
struct SharedTables {
  uint16_t ring[kWarpsPerBlock][kRingWords];  // at a multiple of its rows' size
  SharedTable table[kTableIds];
};
extern __shared__ __align__(1024) unsigned char shared_bytes[];

// Packed symbols: start << 22 | value + 64 << 11 | frequency. The bits of the value stay where they
// are until they are part of a number: a channel's number comes as 2048 * value (kValueOne), means
// and cosets are added in that scale, and steps are divided by it, all of which is exact.
inline constexpr uint32_t kValueMask = 0x3F800, kValueOne = 0x800;
inline constexpr int kValueOffset = 64;
// Of means, quarter steps: a whole step of 4 is kValueOne, and the offset is taken away again.
__device__ inline int32_t ScaledMean(int mean) {
  return static_cast<int32_t>(static_cast<uint32_t>(mean - 4 * kValueOffset) * (kValueOne / 4));
}
__device__ inline float ScaledStep(int step) {
  return __fmul_rn(StepFloat(step), 1.0f / static_cast<float>(kValueOne));
}

// Reads at 32-bit shared addresses: the compiler would add the block's base to every one.
__device__ inline uint32_t SharedBase() {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared_bytes));
}
__device__ inline uint32_t LoadShared8(uint32_t at) {
  uint32_t v;
  asm volatile("ld.shared.u8 %0, [%1];" : "=r"(v) : "r"(at));
  return v;
}
__device__ inline uint32_t LoadShared32(uint32_t at) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at));
  return v;
}

// Called by the whole block; needs a barrier before use.
__device__ inline void BuildTables(const DeviceConstants& constants, SharedTables& shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int id = warp; id < kTableIds; id += blockDim.x / 32) {
    const EntropyTableHead head = constants.heads[id];
    uint32_t start = 0;
    for (int i = 0; i < head.count; ++i) {
      const uint32_t frequency = constants.frequencies[head.at + i];
      for (uint32_t s = lane; s < frequency; s += 32) {
        shared.table[id].slot[start + s] = static_cast<uint8_t>(4 * i);
      }
      if (lane == 0) {
        const int value = head.first + i * head.stride + kValueOffset;
        shared.table[id].symbol[i] =
            start << 22 | static_cast<uint32_t>(value) * kValueOne | frequency;
      }
      start += frequency;
    }
  }
}

// A warp's coder over one tile. Every method is called by all 32 lanes together. Words past the end
// read as zeros and Finished() is false then.
class WarpCoder {
 public:
  __device__ WarpCoder(const unsigned char* states, uint32_t words)
      : words_(states + 4 * 32), total_(2 * words) {
    ring_ = SharedBase() + static_cast<uint32_t>(offsetof(SharedTables, ring)) +
            threadIdx.x / 32 * (2 * kRingWords);
    asm("mov.u32 %0, %%lanemask_lt;" : "=r"(before_));
    const unsigned char* p = states + 4 * Lane();
    x_ = p[0] | p[1] << 8 | p[2] << 16 | static_cast<uint32_t>(p[3]) << 24;
    LoadNext();
  }

  // Makes sure that `need` words are at hand, at most 288.
  __device__ void Reserve(uint32_t need) {
    if (loaded_ - used_ >= 2 * need) return;
    __syncwarp();
#pragma unroll 1
    do {
      asm volatile(
          "st.shared.u32 [%0], %1;" ::"r"(ring_ | (loaded_ + 4 * Lane() & (2 * kRingWords - 1))),
          "r"(NextPair())
          : "memory");
      loaded_ += 128;
      LoadNext();
    } while (loaded_ - used_ < 2 * need);
    __syncwarp();
  }

  // A packed symbol from table `id`, read by lanes that are `active`; reserves nothing. kAll: all
  // are.
  template <bool kAll = false>
  __device__ uint32_t Packed(uint32_t id, bool active = true) {
    const uint32_t slot = x_ & (kProbabilityTotal - 1);
    const uint32_t table = SharedBase() + static_cast<uint32_t>(offsetof(SharedTables, table)) +
                           id * static_cast<uint32_t>(sizeof(SharedTable));
    const uint32_t at = LoadShared8(table + slot);
    const uint32_t packed =
        LoadShared32(table + at + static_cast<uint32_t>(offsetof(SharedTable, symbol)));
    Advance<kAll>((packed & 0x7FF) * (x_ >> kProbabilityBits) + (slot - (packed >> 22)), active);
    return packed;
  }
  // Its value.
  __device__ int Symbol(uint32_t id, bool active = true) {
    return static_cast<int>((Packed(id, active) & kValueMask) / kValueOne) - kValueOffset;
  }

  // The coset: the half one has the `half_frequency` highest slots.
  template <bool kAll = false>
  __device__ bool Coset(uint32_t half_frequency, bool active = true) {
    const uint32_t slot = x_ & (kProbabilityTotal - 1), whole = kProbabilityTotal - half_frequency;
    const bool half = slot >= whole;
    const uint32_t x =
        (half ? half_frequency : whole) * (x_ >> kProbabilityBits) + slot - (half ? whole : 0);
    Advance<kAll>(x, active);
    return half;
  }

  __device__ uint32_t Bits(uint32_t count, bool active) {
    const uint32_t bits = x_ & ((1u << count) - 1);
    Advance<false>(x_ >> count, active);
    return bits;
  }

  __device__ bool Overrun() const { return used_ > total_; }
  // Every word read and every lane back where the encoder began.
  __device__ bool Finished() const { return __all_sync(kAllLanes, x_ == kLow) && used_ == total_; }
  __device__ static uint32_t Lane() { return threadIdx.x % 32; }

 private:
  // Active lanes go on to `x`; those whose states are too low read a word, in order of the lanes.
  // One comparison for vote and reads, which the compiler would make two of. Not said to touch
  // memory, so that loads may go ahead of it: the ring is written by volatile instructions alone.
  template <bool kAll>
  __device__ void Advance(uint32_t x, bool active) {
    if (kAll || active) x_ = x;
    asm volatile(
        "{\n\t.reg .pred p;\n\t.reg .b32 readers, n;\n\t"
        "setp.lt.u32 p, %0, %2;\n\t"
        "vote.sync.ballot.b32 readers, p, 0xffffffff;\n\t"
        "and.b32 n, readers, %3;\n\t"
        "popc.b32 n, n;\n\t"
        "mad.lo.u32 n, n, 2, %1;\n\t"
        "and.b32 n, n, %5;\n\t"
        "or.b32 n, n, %4;\n\t"
        "@p ld.shared.u16 n, [n];\n\t"
        "@p prmt.b32 %0, n, %0, 0x5410;\n\t"
        "popc.b32 n, readers;\n\t"
        "mad.lo.u32 %1, n, 2, %1;\n\t}"
        : "+r"(x_), "+r"(used_)
        : "r"(kAll || active ? kLow : 0), "r"(before_), "r"(ring_), "n"(2 * kRingWords - 1));
  }

  // Starts loading the words behind `loaded_`, two a lane. The stream may begin at any byte;
  // reading whole aligned u32 touches at most 7 bytes around it, which the arena has.
  __device__ void LoadNext() {
    const uint32_t first = loaded_ + 4 * Lane();
    next_[0] = next_[1] = 0;
    if (first >= total_) return;
    const uintptr_t address = reinterpret_cast<uintptr_t>(words_) + first;
    const uint32_t* aligned = reinterpret_cast<const uint32_t*>(address & ~uintptr_t{3});
    next_[0] = __ldg(aligned);
    next_[1] = __ldg(aligned + 1);
  }
  // They, put together as late as can be; zeros past the end.
  __device__ uint32_t NextPair() const {
    const uint32_t pair = __funnelshift_r(
        next_[0], next_[1], static_cast<uint32_t>(reinterpret_cast<uintptr_t>(words_) & 3) * 8);
    return loaded_ + 4 * Lane() + 2 < total_ ? pair : pair & 0xFFFF;
  }

  uint32_t ring_;  // shared address, aligned to the ring's size
  uint32_t before_;
  const unsigned char* words_;
  // In bytes.
  uint32_t total_;
  uint32_t used_ = 0, loaded_ = 0;
  uint32_t x_;
  uint32_t next_[2];  // around this lane's words of the block that goes into the ring next
};

}  // namespace latticekv::cuda

#endif  // LATTICEKV_CORE_CODEC_CUDA_WARP_CODER_CUH_
