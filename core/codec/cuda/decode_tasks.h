// What the decode kernels read: plain structures that the host has filled and checked. Every `_at`
// is a byte offset into the caller's device arena. Internal to core/codec/cuda.
#ifndef LATTICEKV_CORE_CODEC_CUDA_DECODE_TASKS_H_
#define LATTICEKV_CORE_CODEC_CUDA_DECODE_TASKS_H_

#include <cstdint>

namespace latticekv::cuda {

// How a group of 8 decoded channels reaches memory.
enum RopeMode : uint8_t {
  kDirect = 0,       // no rotation: a lane stores its own group
  kNeoxPair = 1,     // the rotary partner is in another lane of the same round
  kInterleaved = 2,  // the same, with channels woven together in memory
  kStaged = 3,       // rows straddle rounds or pairs straddle groups: whole rows by way of memory
};

// One head of one plane of one layer of one chunk. Tokens are counted among those
// that have rows, wherever they lie.
struct alignas(16) UnitTask {
  uint64_t dst;           // device address of the head's first element
  uint64_t token_stride;  // bytes between tokens of a block
  uint64_t block_stride;  // bytes between blocks
  uint64_t raw_at;        // raw vectors, one behind the other
  uint64_t order_at;      // u8 tokens: of the raw vectors, then of the coded ones
  uint64_t resolved_at;   // scratch: RowRecord [coded], f32 step[dim] of keys, i32 mean[dim], u8
                          // table[dim], u8 low_bits[dim]
  uint64_t rope_at;       // float2 cos and sin [token][pair]
  uint64_t profile_at;    // ProfileHead, or 0
  uint32_t group_begin;   // of the tile's groups
  uint32_t group_end;
  uint32_t vector_bytes;
  uint16_t dim;
  uint16_t pairs;  // rotary, 0 for none
  uint16_t raw_count;
  uint16_t coded_count;
  int16_t step_base;
  uint16_t half_frequency;  // of the half coset
  int8_t sigma_base;
  uint8_t element_bytes;
  uint8_t is_bf16;
  uint8_t is_key;
  uint8_t all_zero;
  uint8_t rope_mode;
  uint8_t wide_stores;  // 16-byte stores are aligned
  uint8_t interleaved;
  uint8_t mean_source, spread_source, step_source;
  uint8_t mean_spread, mean_bits, sigma_spread, sigma_bits, step_spread, step_bits;
};

struct alignas(16) TileTask {
  uint64_t states_at;   // 32 states of u32, then the words; not aligned
  uint64_t places_at;   // TokenPlace [tokens]
  uint64_t offsets_at;  // with `mass`: i8 [tokens], step offsets of keys
  uint32_t words;
  uint32_t first_unit;
  uint32_t units;
  uint32_t groups;  // 0: nothing is coded
  uint32_t chunk;
  uint32_t tokens;
  int32_t value_unit_16;
  uint32_t mass;  // steps vary with the attention that tokens received
};

// What a coded vector needs besides its symbols.
struct alignas(16) RowRecord {
  uint64_t dst;  // device address
  uint32_t token;
  float step;  // of values
};

// Where a token of a chunk lies.
struct TokenPlace {
  uint32_t block;
  uint32_t slot;
};

// Followed by i32 mean[dim], i16 log2_sigma_16[dim], i16 step_16[dim].
struct alignas(16) ProfileHead {
  int32_t mean_exponent;
};

// A table of cos and sin to compute: [rows][pairs] at out_at from u64 frequencies.
struct RopeTask {
  uint64_t start_position;
  uint64_t tokens_at;  // u8 [rows]: which token from start_position on a row is of
  uint64_t frequencies_at;
  uint64_t out_at;
  uint32_t rows;
  uint32_t pairs;
};

struct DecodeLaunch {
  unsigned char* arena_dev;
  uint64_t units_at, tiles_at, rope_tasks_at;
  uint64_t staging_at;  // kStagedFloats floats a warp, used by staged units only
  uint64_t counter_at;  // u32: next tile; then u32 [chunks]: not zero where a chunk is damaged
  uint32_t tiles;
  uint32_t rope_tasks;
  uint32_t blocks;  // of the decode kernel
  uint32_t mass;    // some tile has it
};

inline constexpr uint32_t kWarpsPerBlock = 32;
inline constexpr uint32_t kStagedFloats = 2048;  // kMaxHeadDim and a round of 256, a power of two

}  // namespace latticekv::cuda

#endif  // LATTICEKV_CORE_CODEC_CUDA_DECODE_TASKS_H_
