// From a block's plan and payload to a visible block. Knows no network.
#ifndef LATTICEKV_SERVER_BLOCK_WRITER_H_
#define LATTICEKV_SERVER_BLOCK_WRITER_H_

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>

#include "latticekv/v1/blocks.pb.h"
#include "server/block_plan.h"
#include "server/engine.h"
#include "server/region_registry.h"

namespace latticekv {

// The acknowledgement when a block at least as good is stored already (it joins the session then).
std::optional<v1::BlockAck> AckIfStored(CacheEngine& engine, const PutTarget& target,
                                        const BlockPlan& plan);

// What a client sent of a block: raw planes or a frame.
struct Payload {
  ByteVector own;
  // Instead of `own`, raw planes in a region that the client may write to meanwhile.
  std::shared_ptr<const SharedRegion> region;
  ByteSpan shared;

  ByteSpan bytes() const { return region ? shared : ByteSpan(own); }
};

// Encodes (or checks) the payload and makes the block visible, unless `cancelled` by then. Runs on
// the codec threads. `ticket` covers plan.memory_bytes and is given back. With a durable target the
// disk begins to take the block, and the acknowledgement must go through FinishDurable.
v1::BlockAck StoreBlock(CacheEngine& engine, const PutTarget& target, const BlockPlan& plan,
                        Payload payload, UploadTicket ticket, const std::atomic<bool>& cancelled);

// Gives `done` the acknowledgement when block, session and layout survive power loss, or with an
// error when they do not: the block is in memory only then. Waits on no thread; `done` is called
// from a thread of the store or at once.
using AckDone = std::function<void(v1::BlockAck)>;
void FinishDurable(CacheEngine& engine, const BlockPlan& plan, v1::BlockAck ack, AckDone done);

v1::BlockAck ErrorAck(uint32_t index, std::string_view content_hash, const absl::Status& error);

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_BLOCK_WRITER_H_
