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
  std::vector<uint64_t> frequencies;  // of every embedding added, whatever the plan
  std::vector<cuda::RopeTask> tasks;  // of the plan at hand
  uint64_t bytes = 0;                 // of all its tables

  // A number for `rope`, the same for equal ones.
  uint32_t Add(const RopeSpec& rope) {
    for (uint32_t i = 0; i < ropes_.size(); ++i) {
      if (ropes_[i].spec == rope) return i;
    }
    ropes_.push_back({rope, frequencies.size() * sizeof(uint64_t)});
    const std::vector<uint64_t> computed = RopeFrequencies(rope);
    frequencies.insert(frequencies.end(), computed.begin(), computed.end());
    return static_cast<uint32_t>(ropes_.size() - 1);
  }

  void StartPlan() {
    tasks.clear();
    bytes = 0;
  }
  // `tokens_at`: of the chunk's rows, as RopeTask has it, from wherever lists of tokens begin.
  void StartChunk(uint64_t start_position, uint32_t rows, uint64_t tokens_at) {
    of_chunk_.assign(ropes_.size(), kNoTable);
    chunk_ = {};
    chunk_.start_position = start_position;
    chunk_.tokens_at = tokens_at;
    chunk_.rows = rows;
  }

  // Where the chunk's table of the embedding with number `rope` will be.
  uint64_t TableAt(uint32_t rope) {
    uint64_t& at = of_chunk_[rope];
    if (at != kNoTable) return at;
    at = bytes;
    cuda::RopeTask& task = tasks.emplace_back(chunk_);
    task.frequencies_at = ropes_[rope].frequencies_at;
    task.out_at = at;
    task.pairs = ropes_[rope].spec.rotary_dims / 2;
    bytes += RoundUp(uint64_t{task.rows} * task.pairs * sizeof(SinCos), kArenaAlignment);
    return at;
  }

  void Move(uint64_t frequencies_at, uint64_t tokens_at, uint64_t tables_at) {
    for (cuda::RopeTask& task : tasks) {
      task.frequencies_at += frequencies_at;
      task.tokens_at += tokens_at;
      task.out_at += tables_at;
    }
  }

 private:
  static constexpr uint64_t kNoTable = ~uint64_t{0};
  struct Rope {
    RopeSpec spec;
    uint64_t frequencies_at;
  };
  std::vector<Rope> ropes_;
  std::vector<uint64_t> of_chunk_;  // [rope]
  cuda::RopeTask chunk_{};          // what all of the chunk's tasks have
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CUDA_ROPE_TABLES_H_
