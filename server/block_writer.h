// From a block's header and payload to a visible block. Knows no network.
#ifndef LATTICEKV_SERVER_BLOCK_WRITER_H_
#define LATTICEKV_SERVER_BLOCK_WRITER_H_

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
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
  std::shared_ptr<const GpuPlacement> placement;  // of a payload in GPU memory
};

// INVALID_ARGUMENT, FAILED_PRECONDITION (layout not registered) or RESOURCE_EXHAUSTED.
absl::StatusOr<PutTarget> OpenPut(CacheEngine& engine, const v1::PutOpen& open);

// Checks a header against layout, chunk rules and its own hash. Errors are the block's, not the
// stream's.
absl::StatusOr<BlockPlan> PlanBlock(CacheEngine& engine, const PutTarget& target,
                                    const v1::BlockHeader& header);

// The acknowledgement when a block at least as good is stored already (it joins the session then).
std::optional<v1::BlockAck> AckIfStored(CacheEngine& engine, const PutTarget& target,
                                        const BlockPlan& plan);

// Encodes (or checks) the payload and makes the block visible, unless `cancelled` by then. Runs on
// the codec threads. `ticket` covers plan.memory_bytes and is given back. With a durable target the
// disk begins to take the block, and the acknowledgement must go through FinishDurable.
v1::BlockAck StoreBlock(CacheEngine& engine, const PutTarget& target, const BlockPlan& plan,
                        ByteVector payload, UploadTicket ticket,
                        const std::atomic<bool>& cancelled);

// Gives `done` the acknowledgement when block, session and layout survive power loss, or with an
// error when they do not: the block is in memory only then. Waits on no thread; `done` is called
// from a thread of the store or at once.
using AckDone = std::function<void(v1::BlockAck)>;
void FinishDurable(CacheEngine& engine, const BlockPlan& plan, v1::BlockAck ack, AckDone done);

v1::BlockAck ErrorAck(uint32_t index, std::string_view content_hash, const absl::Status& error);

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_BLOCK_WRITER_H_
