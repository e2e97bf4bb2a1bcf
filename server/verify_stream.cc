#include "server/verify_stream.h"

#include <utility>

#include "server/block_reader.h"
#include "server/grpc_status.h"

namespace latticekv {
namespace {

constexpr size_t kBatchBlocks = 16;  // between two reports

}  // namespace

VerifyStream::VerifyStream(CacheEngine& engine) : engine_(engine) {
  ++engine_.metrics().open_streams;
}

VerifyStream* VerifyStream::Start(CacheEngine& engine) {
  std::shared_ptr<VerifyStream> stream(new VerifyStream(engine));
  stream->self_ = stream;
  stream->SubmitBatch();
  return stream.get();
}

void VerifyStream::SubmitBatch() {
  if (engine_.codec_pool().Submit(CodecPool::Kind::kDecode,
                                  [self = shared_from_this()] { self->CheckBatch(); })) {
    return;
  }
  MutexLock lock(mutex_);
  FinishLocked(
      LimitError("kMaxCodecQueueJobs", "the codec threads are too far behind; verify again later"));
}

void VerifyStream::CheckBatch() {
  std::vector<StoredBlockPtr> batch;
  engine_.store().List(after_, kBatchBlocks, [&](const StoredBlockPtr& block) {
    batch.push_back(block);
    return true;
  });
  for (StoredBlockPtr& block : batch) {
    {
      MutexLock lock(mutex_);
      if (finished_) return;
    }
    after_ = block->key;
    const absl::Status status = VerifyBlock(engine_, block);
    progress_.set_blocks_checked(progress_.blocks_checked() + 1);
    if (absl::IsDataLoss(status)) progress_.set_blocks_corrupt(progress_.blocks_corrupt() + 1);
    block.reset();  // evictable again
  }
  progress_.set_done(batch.size() < kBatchBlocks);
  MutexLock lock(mutex_);
  if (!finished_) StartWrite(&progress_);
}

void VerifyStream::OnWriteDone(bool ok) {
  if (ok && !progress_.done()) {
    SubmitBatch();
    return;
  }
  MutexLock lock(mutex_);
  FinishLocked(ok ? absl::OkStatus() : absl::CancelledError("the stream was cancelled"));
}

void VerifyStream::OnCancel() {
  MutexLock lock(mutex_);
  FinishLocked(absl::CancelledError("the stream was cancelled"));
}

void VerifyStream::FinishLocked(const absl::Status& status) {
  if (finished_) return;
  finished_ = true;
  Finish(ToGrpcStatus(status));
}

void VerifyStream::OnDone() {
  --engine_.metrics().open_streams;
  // A job that still runs shares the ownership.
  const std::shared_ptr<VerifyStream> self = std::move(self_);
}

}  // namespace latticekv
