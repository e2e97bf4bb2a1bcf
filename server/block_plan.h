// From the headers of a put to what its blocks will be: everything is checked before the first byte
// of a payload. Knows no network.
#ifndef LATTICEKV_SERVER_BLOCK_PLAN_H_
#define LATTICEKV_SERVER_BLOCK_PLAN_H_

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "latticekv/v1/blocks.pb.h"
#include "server/engine.h"

namespace latticekv {

// What the first message of a PutBlocks stream settles.
struct PutTarget {
  std::string name_space;
  LayoutInUse layout;
  PresetId preset = kDefaultPreset;
  SeedOptions seed;     // of PresetId::kSeed
  std::string session;  // empty: none
  bool durable = false;
  int64_t ttl_ms = 0;
  bool frames = false;  // payloads are frames
};

// A block that was announced and may be uploaded.
struct BlockPlan {
  uint32_t index = 0;
  BlockKey key{};
  std::optional<BlockKey> parent_key;
  BlockMetadata metadata;  // all but what coding finds out
  uint64_t payload_bytes = 0;
  size_t memory_bytes = 0;  // at most, from the first part to the visible block
  std::vector<uint32_t> exact_tokens;
  std::vector<uint8_t> keep;  // 1 or 0 for each token; empty: none is evicted
  // [layers][tokens], attention that each token received; empty: unknown.
  std::vector<float> attention_mass;
  uint64_t mass_queries = 0;
  std::vector<float> mass_levels;  // [layers], or empty
  Reservation mass_reservation;
  std::shared_ptr<const GpuPlacement> placement;  // of a payload in GPU memory
};

// INVALID_ARGUMENT, FAILED_PRECONDITION (layout not registered) or RESOURCE_EXHAUSTED.
absl::StatusOr<PutTarget> OpenPut(CacheEngine& engine, const v1::PutOpen& open);

// Checks a header against layout, chunk rules and its own hash. Errors are the block's, not the
// stream's.
absl::StatusOr<BlockPlan> PlanBlock(CacheEngine& engine, const PutTarget& target,
                                    const v1::BlockHeader& header);

size_t LargestLayerBytes(const Layout& layout, uint32_t tokens);

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_BLOCK_PLAN_H_
