// One GetBlocks stream.
#ifndef LATTICEKV_SERVER_GET_STREAM_H_
#define LATTICEKV_SERVER_GET_STREAM_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <queue>
#include <utility>
#include <vector>

#include "core/base/mutex.h"
#include "latticekv/v1/cache_service.pb.h"
#include "server/block_reader.h"
#include "server/engine.h"
#include "server/get_window.h"
#include "server/stream_monitor.h"

namespace latticekv {

// Sends BlockOpen for every block, then layer 0 of each block, layer 1 of each, and so on. The
// codec threads decode ahead of the one write in flight, within a window of bytes reserved from the
// budget. What lies on disk is read before that by threads of its own: the blocks that come into
// memory all at once, ahead of the window, others by layers within it. A reader that takes layers
// in any order gets those of the blocks that are there while others are still read. Owns itself
// until gRPC is done with it; jobs share the ownership.
class GetStream final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                        public MonitoredStream,
                        public std::enable_shared_from_this<GetStream> {
 public:
  // Without a request (it could not be parsed) the stream ends with INVALID_ARGUMENT.
  static GetStream* Start(CacheEngine& engine, const RegionRegistry& regions,
                          grpc::CallbackServerContext* context,
                          const std::optional<v1::GetBlocksRequest>& request);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;
  void OnTick() override;

 private:
  // One layer of one block (or one whole frame), on its way from the store to the wire.
  struct Item {
    uint32_t block = 0;  // position in plan_.blocks
    uint32_t layer = 0;
    size_t window_bytes = 0;
    Reservation reservation;
    bool waiting = false;  // for its block to come into memory
    bool ready = false;
    absl::Status status;
    StoredBytes stored;
    std::deque<v1::GetPart> parts;    // of raw reads
    std::vector<v1::GetPart> placed;  // of raw reads into the window: one for each plane
    uint64_t frame_offset = 0;        // of frame reads: next byte to send
    bool told = false;                // of reads into GPU memory: that the block is placed
  };
  using ItemPtr = std::shared_ptr<Item>;
  // Where a block of the plan is read from.
  enum class Source : uint8_t { kMemory, kDisk, kComing };

  GetStream(CacheEngine& engine, const RegionRegistry& regions,
            grpc::CallbackServerContext* context, const v1::GetBlocksRequest& request);

  void Prepare();
  // On the threads that read: brings a block into memory.
  void Load(uint32_t block);
  // On the threads that read: what one item needs of a block that stays on disk.
  void Read(const ItemPtr& item);
  void Decode(const ItemPtr& item);
  // Begins to bring into memory what is to come there.
  void StartLoadsLocked() LKV_REQUIRES(mutex_);
  // Hands the item to the threads that read or decode, unless its block is still to come.
  void StartLocked(const ItemPtr& item) LKV_REQUIRES(mutex_);
  void SubmitDecodeLocked(const ItemPtr& item) LKV_REQUIRES(mutex_);
  void FailLocked(Item& item, absl::Status status) LKV_REQUIRES(mutex_);
  // Starts decoding as far ahead as the window allows.
  void ScheduleLocked() LKV_REQUIRES(mutex_);
  // Frames and reads into GPU memory go block by block, not layer by layer.
  bool WholeBlocks() const LKV_REQUIRES(mutex_) { return plan_.frames || plan_.target != nullptr; }
  bool AnyOrder() const LKV_REQUIRES(mutex_) {
    return request_.unordered_layers() && !WholeBlocks();
  }
  // Makes the top of next_ a layer that is to be sent; false: there is none now.
  bool AdvanceLocked() LKV_REQUIRES(mutex_);
  // Starts the next write or ends the stream.
  void PumpLocked() LKV_REQUIRES(mutex_);
  bool NextMessageLocked() LKV_REQUIRES(mutex_);
  bool NextPartLocked(Item& item) LKV_REQUIRES(mutex_);
  // Takes room in the window for a layer; false when there is none now.
  bool PlaceLocked(Item& item) LKV_REQUIRES(mutex_);
  // Makes all parts at the front that are ready in the window the next message; false: there are
  // none.
  bool TakePlacedLocked() LKV_REQUIRES(mutex_);
  // Makes the part, data and all, the next message.
  void SetInlineLocked(v1::GetPart part) LKV_REQUIRES(mutex_);
  void PopFrontLocked() LKV_REQUIRES(mutex_);
  // Nothing new begins; the stream ends at once, or with its last job that writes to the client's
  // GPU memory: who has seen the end may use that memory.
  void FinishLocked(const absl::Status& status) LKV_REQUIRES(mutex_);
  // After a job that wrote there.
  void PlacedLocked() LKV_REQUIRES(mutex_);

  CacheEngine& engine_;
  const RegionRegistry& regions_;
  grpc::CallbackServerContext* const context_;
  const v1::GetBlocksRequest request_;
  std::shared_ptr<GetStream> self_;  // until OnDone

  Mutex mutex_;
  ReadPlan plan_ LKV_GUARDED_BY(mutex_);  // its blocks do not change after Prepare
  bool prepared_ LKV_GUARDED_BY(mutex_) = false;
  size_t opens_sent_ LKV_GUARDED_BY(mutex_) = 0;
  std::vector<bool> dead_ LKV_GUARDED_BY(mutex_);  // blocks missing or failed
  std::vector<Source> sources_ LKV_GUARDED_BY(mutex_);
  std::vector<StoredBlockPtr> in_memory_ LKV_GUARDED_BY(mutex_);  // of Source::kMemory
  // The next layer of each block that may be scheduled; the lowest layer first, the first block of
  // these.
  using LayerOfBlock = std::pair<uint32_t, uint32_t>;
  std::priority_queue<LayerOfBlock, std::vector<LayerOfBlock>, std::greater<>> next_
      LKV_GUARDED_BY(mutex_);
  size_t awaited_ LKV_GUARDED_BY(mutex_) = 0;  // blocks that come into next_ when they are loaded
  std::deque<ItemPtr> items_ LKV_GUARDED_BY(mutex_);
  size_t window_bytes_ LKV_GUARDED_BY(mutex_) = 0;
  int64_t starved_since_ms_ LKV_GUARDED_BY(mutex_) = 0;       // 0: not waiting for memory
  std::unique_ptr<GetWindow> window_ LKV_GUARDED_BY(mutex_);  // null: parts go inline
  v1::GetBlocksResponse response_;  // of the write in flight, but for inline parts
  grpc::ByteBuffer message_;        // of the write in flight
  bool writing_ LKV_GUARDED_BY(mutex_) = false;
  bool finished_ LKV_GUARDED_BY(mutex_) = false;
  absl::Status end_ LKV_GUARDED_BY(mutex_);      // of a stream that is finished
  uint32_t placing_ LKV_GUARDED_BY(mutex_) = 0;  // jobs that write to the client's GPU memory
  bool done_ LKV_GUARDED_BY(mutex_) = false;
  int64_t write_start_ms_ LKV_GUARDED_BY(mutex_) = 0;
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_GET_STREAM_H_
