// What the encode kernels read and write: plain structures. Every `_at` is a byte offset into the
// caller's device arena. Internal to core/codec/cuda.
#ifndef LATTICEKV_CORE_CODEC_CUDA_ENCODE_TASKS_H_
#define LATTICEKV_CORE_CODEC_CUDA_ENCODE_TASKS_H_

#include <cstdint>

#include "core/codec/cuda/decode_tasks.h"

namespace latticekv::cuda {

// One head of one plane of one layer of one chunk. Tokens are counted among those that are not
// evicted, wherever they lie.
struct alignas(16) EncodeUnit {
  uint64_t src;           // address of the head's first element, device or pinned memory
  uint64_t token_stride;  // bytes between tokens of a block
  uint64_t block_stride;  // bytes between blocks
  uint64_t places_at;     // TokenPlace [tokens]
  uint64_t asked_at;      // u8 [tokens], 1: to be stored bit for bit
  uint64_t model_at;      // EncodeModel of the head
  uint64_t rope_at;       // float2 cos and sin [token][pair]
  uint64_t q2_at;         // scratch: i16 [tokens][dim], twice the lattice points
  uint64_t result_at;     // UnitResult and its arrays
  uint32_t vector_bytes;
  uint16_t tokens;
  uint16_t dim;
  uint16_t pairs;     // rotary, 0 for none
  uint16_t slices;    // of a row, see SliceShape
  uint8_t row_lanes;  // power of two: lanes of a warp that share a row
  uint8_t element_bytes;
  uint8_t is_bf16;
  uint8_t is_key;
  uint8_t interleaved;
  uint8_t wide_loads;  // 16-byte loads are aligned
  uint8_t fused;       // in a list of the fused kernels
};

// How a row is dealt to lanes. Paired: a slice is 16 channels, two groups of 8 that hold whole
// rotary pairs or none; else a slice is one group. Single: no lane has more than one slice.
enum SliceShape : uint8_t {
  kPairedSingle = 0,
  kPairedMulti = 1,
  kPlainSingle = 2,
  kPlainMulti = 3
};
inline constexpr int kSliceShapes = 4;
// Of the fused kernels: of each f16, then bf16.
enum FusedList : uint8_t {
  kFusedValues = 0,
  kFusedKeysByEnergy = 2,  // whose steps come from the model's query energy
  kFusedKeysBySpread = 4   // from their own spread; not with the profile's statistics
};
inline constexpr int kFusedLists = 6;

// What encoding knows of a head before it sees a chunk. Followed by u64 weight[dim] (of squared
// errors in steps, keys with query energy), i32 mean[dim], i16 log2_sigma_16[dim], i16 step[dim]
// (final step indices of keys with query energy).
struct alignas(16) EncodeModel {
  int32_t mean_exponent;
  int16_t key_base;     // sixteenths, with query energy
  int16_t spread_unit;  // 32nds of an octave that keys without it add to their spread's logarithm
  uint8_t has_statistics;
  uint8_t from_energy;
};

// What encoding a unit decided. Followed by u8 order[256] (tokens: of the raw vectors, then of the
// coded ones), i32 step_values[], mean_values[dim], sigma_values[dim], u8 table[dim],
// low_bits[dim].
struct alignas(16) UnitResult {
  uint64_t error_sum;
  uint16_t coded_count;
  uint16_t raw_count;   // vectors stored raw
  uint16_t step_count;  // values sent
  uint16_t mean_count;
  uint16_t sigma_count;
  int16_t step_base;
  int8_t sigma_base;
  uint8_t modes;  // first byte of the unit header
  uint8_t coset;
  uint8_t mean_spread, mean_bits, sigma_spread, sigma_bits, step_spread, step_bits;
  uint8_t any_low_bits;
  uint8_t uses_profile;
  uint8_t pending;  // left to the kernel of several passes
};
inline constexpr uint32_t kUnitOrderBytes = 256;
// Step values of a unit: one a channel or one a token.
constexpr uint32_t StepRoom(uint32_t dim) { return dim > 256 ? dim : 256; }

struct alignas(16) EncodeTile {
  uint64_t words_at;   // scratch for `room` words, filled from the end
  uint64_t states_at;  // u32 [32]
  uint32_t room;
  uint32_t first_unit;
  uint32_t units;
  uint32_t layer;       // of the batch
  uint32_t index;       // in the layer
  uint32_t words;       // result
  uint32_t size_bytes;  // result: of the whole tile
  uint64_t begin;       // result: in the output
};

// One layer of one chunk.
struct EncodeLayer {
  uint32_t first_tile;
  uint32_t tiles;
  uint32_t first_unit;
  uint32_t units;
  uint32_t gap_bytes;  // kept free before a frame's first layer, for the frame's header
};

// What the host gets back of a layer: its lattice part, opaque planes left out.
struct LayerResult {
  uint64_t begin;  // in the output
  uint64_t key_error_sum, value_error_sum;
  uint32_t size_bytes;
  uint32_t crc32c;
  uint32_t key_vectors, value_vectors;
  uint32_t uses_profile;
  uint32_t padding;
};

// Planes that the host will code (exact ones): gathered as [tokens][heads][head_dim].
struct alignas(16) GatherTask {
  uint64_t src, token_stride, head_stride, block_stride;
  uint64_t places_at;
  uint64_t out_at;
  uint32_t tokens, heads, vector_bytes;
};

struct EncodeLaunch {
  unsigned char* arena_dev;
  uint64_t units_at, tiles_at, layers_at, rope_tasks_at, gathers_at;
  uint64_t unit_lists_at[kSliceShapes];  // u32 indices of units of each shape
  uint64_t fused_lists_at[kFusedLists];
  uint64_t results_at;  // LayerResult [layers]
  uint64_t output_at;
  uint64_t counter_at;  // u32: next tile; u32: a fused kernel left units to others
  uint32_t unit_lists[kSliceShapes];
  uint32_t fused_lists[kFusedLists];
  uint32_t units, tiles, layers, rope_tasks, gathers;
  uint32_t max_dim;
  int16_t value_unit_16;
  uint8_t stats;    // StatsMode
  uint32_t blocks;  // of persistent kernels
};

}  // namespace latticekv::cuda

#endif  // LATTICEKV_CORE_CODEC_CUDA_ENCODE_TASKS_H_
