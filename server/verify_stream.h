// One Verify stream: decodes every block in memory, then checks every record on disk, and reports
// progress.
#ifndef LATTICEKV_SERVER_VERIFY_STREAM_H_
#define LATTICEKV_SERVER_VERIFY_STREAM_H_

#include <grpcpp/support/server_callback.h>

#include <memory>
#include <optional>
#include <vector>

#include "core/base/mutex.h"
#include "latticekv/v1/admin_service.pb.h"
#include "server/engine.h"

namespace latticekv {

// One job at a time on the codec threads, so that readers and writers come between. Owns itself
// until gRPC is done with it.
class VerifyStream final : public grpc::ServerWriteReactor<v1::VerifyProgress>,
                           public std::enable_shared_from_this<VerifyStream> {
 public:
  static VerifyStream* Start(CacheEngine& engine, const v1::VerifyRequest& request);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  VerifyStream(CacheEngine& engine, const v1::VerifyRequest& request);

  void SubmitBatch();
  void CheckBatch();
  void SubmitScrub();
  void ScrubDisk();
  void FinishLocked(const absl::Status& status) LKV_REQUIRES(mutex_);

  CacheEngine& engine_;
  std::shared_ptr<VerifyStream> self_;  // until OnDone
  std::optional<BlockKey> after_;       // of the one batch under way
  v1::VerifyProgress progress_;         // idem
  v1::VerifyProgress sending_;          // of the write in flight
  const uint64_t disk_bytes_per_second_;

  Mutex mutex_;
  bool finished_ LKV_GUARDED_BY(mutex_) = false;
  bool writing_ LKV_GUARDED_BY(mutex_) = false;
  bool memory_done_ LKV_GUARDED_BY(mutex_) = false;
  bool scrubbing_ LKV_GUARDED_BY(mutex_) = false;
  bool scrubbed_ LKV_GUARDED_BY(mutex_) = false;
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_VERIFY_STREAM_H_
