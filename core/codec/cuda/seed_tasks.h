// What the kernels of the seed stages read and write: plain structures that the host has filled and
// checked. Every `_at` is a byte offset into the caller's device arena. Internal to
// core/codec/cuda.
#ifndef LATTICEKV_CORE_CODEC_CUDA_SEED_TASKS_H_
#define LATTICEKV_CORE_CODEC_CUDA_SEED_TASKS_H_

#include <cstdint>

namespace latticekv::cuda {

// One head of one plane of one layer of one chunk.
struct alignas(16) SeedUnit {
  uint64_t data;          // address of the head's first element: source or destination
  uint64_t token_stride;  // bytes between tokens of a block
  uint64_t block_stride;  // bytes between blocks
  uint64_t places_at;     // TokenPlace [tokens]
  uint64_t order_at;      // u8 [rows]: their tokens
  uint64_t rope_at;       // SinCos [token][pair]
  uint64_t energy_at;     // when encoding keys whose query energy is known: f32 [dim]
  uint64_t scales_at;     // u16 [rows][dim / group]
  uint64_t points_at;     // i8 [rows][dim]
  uint32_t chunk;         // of the batch
  uint16_t rows;          // coded vectors
  uint16_t dim;
  uint16_t group;  // coordinates that share a scale
  uint16_t pairs;  // rotary, 0 for none
  uint8_t bound;   // of points
  uint8_t token_delta;
  uint8_t element_bytes;
  uint8_t is_bf16;
  uint8_t interleaved;
  uint8_t has_energy;
};

// What the host gets back of an encoded unit; zero at first.
struct alignas(16) SeedResult {
  unsigned long long error_sum;  // the type that devices add to atomically
  uint32_t raw_rows;             // vectors that must be stored raw
};

struct SeedLaunch {
  unsigned char* arena_dev;
  uint64_t units_at;
  uint64_t results_at;  // encoding: SeedResult [units]; decoding: u32 [chunks], set where one is
                        // damaged
  uint32_t units;
  uint32_t max_rows, max_dim;  // of the units
  uint32_t blocks;
};

// Blocks for each multiprocessor; one where multiprocessors are counted out.
inline constexpr uint32_t kSeedBlocks = 4;

}  // namespace latticekv::cuda

#endif  // LATTICEKV_CORE_CODEC_CUDA_SEED_TASKS_H_
