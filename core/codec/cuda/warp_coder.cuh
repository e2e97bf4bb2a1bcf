// The 32-lane rANS decoder as a warp reads it: lane = thread, words shared through a ring in shared
// memory. The scalar original is core/codec/cpu/rans.h.
#ifndef LATTICEKV_CORE_CODEC_CUDA_WARP_CODER_CUH_
#define LATTICEKV_CORE_CODEC_CUDA_WARP_CODER_CUH_

#include <cstddef>
#include <cstdint>

#include "core/codec/cuda/decode_tasks.h"
#include "core/codec/entropy_tables.h"

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
struct SharedTables {
  uint8_t slot[kTableIds * kProbabilityTotal];
  uint16_t ring[kWarpsPerBlock][kRingWords];  // at a multiple of its rows' size
  uint32_t symbol[kTableIds * kMaxSymbols];   // value << 21 | start << 11 | frequency
};
extern __shared__ __align__(1024) unsigned char shared_bytes[];

// Reads at 32-bit shared addresses: the compiler would add the block's base to every one.
__device__ inline uint32_t SharedBase() {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared_bytes));
}
__device__ inline uint32_t LoadShared8(uint32_t at) {
  uint32_t v;
  asm volatile("ld.shared.u8 %0, [%1];" : "=r"(v) : "r"(at));
  return v;
}
__device__ inline uint32_t LoadShared16(uint32_t at) {
  uint16_t v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(at));
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
        shared.slot[id * kProbabilityTotal + start + s] = static_cast<uint8_t>(4 * i);
      }
      if (lane == 0) {
        const int value = head.first + i * head.stride;
        shared.symbol[id * kMaxSymbols + i] =
            static_cast<uint32_t>(value) << 21 | start << 11 | frequency;
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
      : words_(states + 4 * 32), total_(words) {
    ring_ = SharedBase() + static_cast<uint32_t>(offsetof(SharedTables, ring)) +
            threadIdx.x / 32 * (2 * kRingWords);
    const unsigned char* p = states + 4 * Lane();
    x_ = p[0] | p[1] << 8 | p[2] << 16 | static_cast<uint32_t>(p[3]) << 24;
    next_ = LoadPair(0);
  }

  // Makes sure that `need` words are at hand, at most 288.
  __device__ void Reserve(uint32_t need) {
    if (loaded_ - used_ >= need) return;
    __syncwarp();
    do {
      asm volatile("st.shared.u32 [%0], %1;" ::"r"(
                       ring_ | (2 * (loaded_ + 2 * Lane()) & (2 * kRingWords - 1))),
                   "r"(next_)
                   : "memory");
      loaded_ += 64;
      next_ = LoadPair(loaded_);
    } while (loaded_ - used_ < need);
    __syncwarp();
  }

  // A symbol from table `id`, read by lanes that are `active`; reserves nothing. kAll: all are.
  template <bool kAll = false>
  __device__ int Symbol(uint32_t id, bool active = true) {
    const uint32_t slot = x_ & (kProbabilityTotal - 1), base = SharedBase();
    const uint32_t at = LoadShared8(base + (id * kProbabilityTotal + slot));
    const uint32_t entry =
        LoadShared32(base + static_cast<uint32_t>(offsetof(SharedTables, symbol)) +
                     (id * (4 * kMaxSymbols) + at));
    const uint32_t x =
        (entry & 0x7FF) * (x_ >> kProbabilityBits) + slot - (entry >> 11 & (kProbabilityTotal - 1));
    Advance<kAll>(x, active);
    return static_cast<int32_t>(entry) >> 21;
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
  template <bool kAll>
  __device__ void Advance(uint32_t x, bool active) {
    const bool reads = (kAll || active) && x < kLow;
    const uint32_t readers = __ballot_sync(kAllLanes, reads);
    if (kAll || active) x_ = x;
    if (reads) {
      const uint32_t at = 2 * (used_ + __popc(readers & LanesBefore()));
      x_ = x << 16 | LoadShared16(ring_ | (at & (2 * kRingWords - 1)));
    }
    used_ += __popc(readers);
  }

  __device__ static uint32_t LanesBefore() {
    uint32_t mask;
    asm("mov.u32 %0, %%lanemask_lt;" : "=r"(mask));
    return mask;
  }

  // Words at + 2 * lane and the one behind it; zeros past the end. The stream may begin at any
  // byte; reading whole aligned u32 touches at most 7 bytes around it, which the arena has.
  __device__ uint32_t LoadPair(uint32_t at) const {
    const uint32_t first = at + 2 * Lane();
    if (first >= total_) return 0;
    const uintptr_t address = reinterpret_cast<uintptr_t>(words_) + 2 * size_t{first};
    const uint32_t* aligned = reinterpret_cast<const uint32_t*>(address & ~uintptr_t{3});
    const uint32_t pair = __funnelshift_r(__ldg(aligned), __ldg(aligned + 1), (address & 3) * 8);
    return first + 1 < total_ ? pair : pair & 0xFFFF;
  }

  uint32_t ring_;  // shared address, aligned to the ring's size
  const unsigned char* words_;
  uint32_t total_;
  uint32_t x_;
  uint32_t used_ = 0, loaded_ = 0;
  uint32_t next_;  // this lane's words of the block that goes into the ring next
};

}  // namespace latticekv::cuda

#endif  // LATTICEKV_CORE_CODEC_CUDA_WARP_CODER_CUH_
