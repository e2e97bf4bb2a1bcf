#include "server/verify_stream.h"

#include <utility>

#include "core/base/limits.h"
#include "server/block_reader.h"
#include "server/error_detail.h"
#include "server/grpc_status.h"

namespace latticekv {
namespace {

constexpr size_t kBatchBlocks = 16;  // between two reports

}  // namespace

VerifyStream::VerifyStream(CacheEngine& engine, const v1::VerifyRequest& request)
    : engine_(engine),
      disk_bytes_per_second_(request.disk_bytes_per_second() > 0 ? request.disk_bytes_per_second()
                                                                 : limits::kScrubBytesPerSecond) {
  ++engine_.metrics().open_streams;
}

VerifyStream* VerifyStream::Start(CacheEngine& engine, const v1::VerifyRequest& request) {
  std::shared_ptr<VerifyStream> stream(new VerifyStream(engine, request));
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
    // Records on disk have checks of their own, which cost less than decoding.
    if (block->tier() == Tier::kMemory) {
      const absl::Status status = VerifyBlock(engine_, block);
      progress_.set_blocks_checked(progress_.blocks_checked() + 1);
      if (absl::IsDataLoss(status)) progress_.set_blocks_corrupt(progress_.blocks_corrupt() + 1);
    }
    block.reset();  // evictable again
  }
  const bool last = batch.size() < kBatchBlocks;
  const bool disk = !engine_.config().disk_dir.empty();
  progress_.set_done(last && !disk);
  MutexLock lock(mutex_);
  memory_done_ = last;
  if (finished_) return;
  sending_ = progress_;
  writing_ = true;
  StartWrite(&sending_);
}

void VerifyStream::SubmitScrub() {
  if (engine_.background().Submit(CodecPool::Kind::kDecode,
                                  [self = shared_from_this()] { self->ScrubDisk(); })) {
    return;
  }
  MutexLock lock(mutex_);
  FinishLocked(
      LimitError("kMaxBackgroundJobs", "too much disk work waits already; verify again later"));
}

void VerifyStream::ScrubDisk() {
  const auto report = [this](const ScrubReport& r) {
    progress_.set_disk_records_checked(r.records);
    progress_.set_disk_records_corrupt(r.corrupt);
    progress_.set_disk_records_unreadable(r.unreadable);
    progress_.set_disk_bytes_checked(r.bytes);
  };
  ScrubOptions options;
  options.bytes_per_second = disk_bytes_per_second_;
  const auto scrubbed = engine_.store().Scrub(options, [&](const ScrubReport& r) {
    report(r);
    MutexLock lock(mutex_);
    if (finished_ || engine_.stopping()) return false;
    if (!writing_) {
      sending_ = progress_;
      writing_ = true;
      StartWrite(&sending_);
    }
    return true;
  });
  MutexLock lock(mutex_);
  scrubbed_ = true;
  if (finished_) return;
  if (!scrubbed.ok()) {
    FinishLocked(scrubbed.status());
    return;
  }
  report(*scrubbed);
  progress_.set_done(true);
  if (writing_) return;  // the end is sent after that
  sending_ = progress_;
  writing_ = true;
  StartWrite(&sending_);
}

void VerifyStream::OnWriteDone(bool ok) {
  bool scrub = false;
  {
    MutexLock lock(mutex_);
    writing_ = false;
    if (finished_) return;
    if (!ok || sending_.done()) {
      FinishLocked(ok ? absl::OkStatus() : absl::CancelledError("the stream was cancelled"));
      return;
    }
    if (scrubbed_) {
      sending_ = progress_;
      writing_ = true;
      StartWrite(&sending_);
      return;
    }
    if (scrubbing_) return;
    scrub = scrubbing_ = memory_done_;
  }
  if (scrub) {
    SubmitScrub();
  } else {
    SubmitBatch();
  }
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
