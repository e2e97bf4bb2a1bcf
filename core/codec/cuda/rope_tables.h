// The rotary tables that a plan has the device compute: one for each chunk and rotary embedding.
// Internal to core/codec/cuda.
#ifndef LATTICEKV_CORE_CODEC_CUDA_ROPE_TABLES_H_
#define LATTICEKV_CORE_CODEC_CUDA_ROPE_TABLES_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "core/codec/cuda/arena_layout.h"
#include "core/codec/cuda/decode_tasks.h"
#include "core/layout/rope.h"
#include "core/layout/rotary_phase.h"

namespace latticekv {

// Offsets count from the start of the tables and of the frequencies until Move.
struct RopeTables {
  std::vector<cuda::RopeTask> tasks;
  std::vector<uint64_t> frequencies;
  uint64_t bytes = 0;  // of all tables

  void StartChunk() { of_chunk_.clear(); }

  // Where the chunk's table of `rope` will be.
  uint64_t TableAt(const RopeSpec& rope, uint64_t start_position, uint32_t tokens) {
    for (const auto& [spec, at] : of_chunk_) {
      if (spec == rope) return at;
    }
    cuda::RopeTask task{};
    task.start_position = start_position;
    task.frequencies_at = FrequenciesAt(rope);
    task.out_at = bytes;
    task.tokens = tokens;
    task.pairs = rope.rotary_dims / 2;
    bytes += RoundUp(uint64_t{task.tokens} * task.pairs * sizeof(SinCos), kArenaAlignment);
    tasks.push_back(task);
    of_chunk_.emplace_back(rope, task.out_at);
    return task.out_at;
  }

  void Move(uint64_t frequencies_at, uint64_t tables_at) {
    for (cuda::RopeTask& task : tasks) {
      task.frequencies_at += frequencies_at;
      task.out_at += tables_at;
    }
  }

 private:
  // Computed once for all chunks.
  uint64_t FrequenciesAt(const RopeSpec& rope) {
    for (const auto& [spec, at] : of_plan_) {
      if (spec == rope) return at;
    }
    const uint64_t at = frequencies.size() * sizeof(uint64_t);
    const std::vector<uint64_t> computed = RopeFrequencies(rope);
    frequencies.insert(frequencies.end(), computed.begin(), computed.end());
    of_plan_.emplace_back(rope, at);
    return at;
  }
  std::vector<std::pair<RopeSpec, uint64_t>> of_chunk_, of_plan_;
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CUDA_ROPE_TABLES_H_
