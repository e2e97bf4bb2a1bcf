// One PutBlocks stream.
#ifndef LATTICEKV_SERVER_PUT_STREAM_H_
#define LATTICEKV_SERVER_PUT_STREAM_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <deque>
#include <memory>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "core/base/mutex.h"
#include "latticekv/v1/cache_service.pb.h"
#include "proto/part_wire.h"
#include "server/block_writer.h"
#include "server/engine.h"
#include "server/region_registry.h"
#include "server/stream_monitor.h"
#include "server/upload_payload.h"

namespace latticekv {

// Reads messages one at a time; every block passes through waiting (for memory), receiving and
// encoding, and leaves with its acknowledgement. Owns itself until gRPC is done with it; codec jobs
// and memory grants share the ownership. docs/protocol.md gives the rules the client sees.
class PutStream final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                        public MonitoredStream,
                        public std::enable_shared_from_this<PutStream> {
 public:
  static PutStream* Start(CacheEngine& engine, RegionRegistry& regions,
                          grpc::CallbackServerContext* context);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;
  void OnTick() override;

 private:
  struct Upload {
    BlockPlan plan;
    std::atomic<bool> cancelled{false};
    // Below: guarded by the stream's mutex.
    enum class State { kWaiting, kReceiving, kEncoding } state = State::kWaiting;
    uint64_t admission_id = 0;
    UploadTicket ticket;
    ByteVector staging;
    std::optional<RegionPlace> place;  // of a payload in shared memory
  };
  using UploadPtr = std::shared_ptr<Upload>;

  PutStream(CacheEngine& engine, RegionRegistry& regions, grpc::CallbackServerContext* context);

  // The message that was read: a part is looked at where it lies, all else is parsed.
  absl::Status HandleMessage();
  // Each handles one message; an error ends the stream.
  absl::Status HandleOpen(const v1::PutOpen& open);
  absl::Status HandleHeader(const v1::BlockHeader& header);
  absl::Status HandlePart(const PutPartView& part);
  absl::Status HandleRegionPart(const v1::RegionPart& part);
  // A payload in the GPU memory of `region`, which `part` says the place in.
  void EncodeFromGpu(const UploadPtr& upload, const GpuCacheRegion& region,
                     const v1::RegionPart& part);
  void HandleHalfClose();

  absl::Status CheckWindow() LKV_REQUIRES(mutex_);
  void RequestCredit(const UploadPtr& upload);
  void OnCredit(const UploadPtr& upload, absl::StatusOr<UploadTicket> ticket);
  // The upload that expects a part; null when the part is late and to be ignored.
  absl::StatusOr<UploadPtr> FindReceiving(uint32_t index);
  absl::Status TakePart(const UploadPtr& upload, const PutPartView& part);
  void StartEncoding(const UploadPtr& upload);
  void Encode(const UploadPtr& upload);
  // Acknowledges when the target's state is reached; nothing of the stream waits meanwhile.
  void Acknowledge(const UploadPtr& upload, v1::BlockAck ack);
  // Takes the upload out and acknowledges it. The ticket and bytes that it still held are moved to
  // `garbage`, to be destroyed without the lock.
  void CompleteLocked(const UploadPtr& upload, v1::BlockAck ack, std::vector<UploadTicket>* garbage)
      LKV_REQUIRES(mutex_);
  // A block that failed while the client may still be sending its parts.
  void FailUpload(const UploadPtr& upload, const absl::Status& error);

  void SendLocked(v1::PutBlocksResponse response) LKV_REQUIRES(mutex_);
  void ReadNextLocked() LKV_REQUIRES(mutex_);
  void FinishIfDoneLocked() LKV_REQUIRES(mutex_);
  // Ends the stream and drops all uploads.
  void Abort(const absl::Status& status);
  bool ReceivingLocked() const LKV_REQUIRES(mutex_);

  CacheEngine& engine_;
  RegionRegistry& regions_;
  grpc::CallbackServerContext* const context_;
  std::shared_ptr<PutStream> self_;  // until OnDone
  std::optional<PutTarget> target_;  // set once, by the first message
  grpc::ByteBuffer message_;         // of the read in flight

  Mutex mutex_;
  std::unordered_map<uint32_t, UploadPtr> uploads_ LKV_GUARDED_BY(mutex_);
  std::unordered_set<uint32_t> failed_ LKV_GUARDED_BY(mutex_);  // parts may still arrive
  std::deque<grpc::ByteBuffer> responses_ LKV_GUARDED_BY(mutex_);
  bool reading_ LKV_GUARDED_BY(mutex_) = false;
  bool writing_ LKV_GUARDED_BY(mutex_) = false;
  bool half_closed_ LKV_GUARDED_BY(mutex_) = false;
  bool finished_ LKV_GUARDED_BY(mutex_) = false;
  bool done_ LKV_GUARDED_BY(mutex_) = false;
  int64_t last_message_ms_ LKV_GUARDED_BY(mutex_) = 0;
  int64_t write_start_ms_ LKV_GUARDED_BY(mutex_) = 0;
  int64_t finish_ms_ LKV_GUARDED_BY(mutex_) = 0;
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_PUT_STREAM_H_
