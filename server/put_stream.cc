#include "server/put_stream.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "server/error_detail.h"
#include "server/grpc_status.h"

namespace latticekv {
namespace {

// Responses that a client may leave unread before the server stops reading.
constexpr size_t kMaxUnreadResponses = 2 * limits::kMaxUnackedBlocksPerStream;
// Failed blocks of one stream whose late parts are ignored.
constexpr size_t kMaxFailedBlocks = 16 * limits::kMaxUnackedBlocksPerStream;

}  // namespace

PutStream::PutStream(CacheEngine& engine, RegionRegistry& regions,
                     grpc::CallbackServerContext* context)
    : engine_(engine),
      regions_(regions),
      context_(context),
      last_message_ms_(engine.clock().MonotonicMs()) {
  ++engine_.metrics().open_streams;
}

PutStream* PutStream::Start(CacheEngine& engine, RegionRegistry& regions,
                            grpc::CallbackServerContext* context) {
  std::shared_ptr<PutStream> stream(new PutStream(engine, regions, context));
  stream->self_ = stream;
  engine.monitor().Watch(stream);
  MutexLock lock(stream->mutex_);
  stream->ReadNextLocked();
  return stream.get();
}

void PutStream::OnReadDone(bool ok) {
  if (!ok) {
    HandleHalfClose();
    return;
  }
  {
    MutexLock lock(mutex_);
    last_message_ms_ = engine_.clock().MonotonicMs();
    if (finished_) {
      reading_ = false;
      return;
    }
  }
  const absl::Status status = HandleMessage();
  {
    MutexLock lock(mutex_);
    reading_ = false;
    if (status.ok()) ReadNextLocked();
  }
  if (!status.ok()) Abort(status);
}

absl::Status PutStream::HandleMessage() {
  std::vector<grpc::Slice> slices;
  if (!message_.Dump(&slices).ok()) return BadPayload("a PutBlocks message cannot be read");
  message_.Clear();
  if (const auto part = ReadPutPart(slices)) return HandlePart(*part);
  v1::PutBlocksRequest request;
  if (!FromSlices(slices, &request)) {
    return BadPayload("a PutBlocks message is not the protobuf it should be");
  }
  switch (request.message_case()) {
    case v1::PutBlocksRequest::kOpen:
      return HandleOpen(request.open());
    case v1::PutBlocksRequest::kHeader:
      return HandleHeader(request.header());
    case v1::PutBlocksRequest::kPart: {
      const v1::BlockPart& part = request.part();
      return HandlePart(
          {part.index(), part.offset(), part.crc32c(), {AsBytes(part.data())}, part.data().size()});
    }
    case v1::PutBlocksRequest::kRegionPart:
      return HandleRegionPart(request.region_part());
    default:
      return BadPayload("a PutBlocks message holds neither open, header nor part");
  }
}

absl::Status PutStream::HandleOpen(const v1::PutOpen& open) {
  if (target_) return BadPayload("PutBlocks takes one open message, the first; start a new stream");
  auto target = OpenPut(engine_, open);
  if (!target.ok()) return target.status();
  target_ = *std::move(target);
  return absl::OkStatus();
}

absl::Status PutStream::CheckWindow() {
  if (failed_.size() >= kMaxFailedBlocks) {
    return BadPayload(absl::StrCat(failed_.size(),
                                   " blocks of this stream failed; look at their "
                                   "errors and start a new stream"));
  }
  if (uploads_.size() < limits::kMaxUnackedBlocksPerStream) return absl::OkStatus();
  return LimitError("kMaxUnackedBlocksPerStream",
                    absl::StrCat("the stream has ", uploads_.size(),
                                 " unacknowledged blocks; wait "
                                 "for acknowledgements before announcing more"));
}

absl::Status PutStream::HandleHeader(const v1::BlockHeader& header) {
  if (!target_) return BadPayload("the first message of PutBlocks must be open");
  {
    MutexLock lock(mutex_);
    if (auto window = CheckWindow(); !window.ok()) return window;
    if (uploads_.contains(header.index())) {
      return BadPayload(absl::StrCat("block index ", header.index(),
                                     " is in use; choose another or wait for its ack"));
    }
    failed_.erase(header.index());
  }
  v1::PutBlocksResponse response;
  auto plan = PlanBlock(engine_, *target_, header);
  if (!plan.ok()) {
    const absl::Status error = absl::IsInvalidArgument(plan.status())
                                   ? WithReason(plan.status(), v1::REASON_BAD_PAYLOAD)
                                   : plan.status();
    *response.mutable_ack() = ErrorAck(header.index(), header.content_hash(), error);
  } else {
    auto ack = AckIfStored(engine_, *target_, *plan);
    if (ack && !target_->durable) {
      *response.mutable_ack() = *std::move(ack);
    } else {
      auto upload = std::make_shared<Upload>();
      upload->plan = *std::move(plan);
      if (ack) upload->state = Upload::State::kEncoding;
      {
        MutexLock lock(mutex_);
        if (finished_) return absl::OkStatus();
        uploads_[header.index()] = upload;
      }
      if (ack) {
        Acknowledge(upload, *std::move(ack));
      } else {
        RequestCredit(upload);
      }
      return absl::OkStatus();
    }
  }
  MutexLock lock(mutex_);
  SendLocked(std::move(response));
  return absl::OkStatus();
}

void PutStream::RequestCredit(const UploadPtr& upload) {
  const uint64_t id = engine_.admission().Request(
      upload->plan.memory_bytes,
      [self = shared_from_this(), upload](absl::StatusOr<UploadTicket> ticket) {
        self->OnCredit(upload, std::move(ticket));
      });
  MutexLock lock(mutex_);
  upload->admission_id = id;
  // A stream that ended meanwhile did not know the id yet.
  if (upload->cancelled.load()) engine_.admission().Cancel(id);
}

void PutStream::OnCredit(const UploadPtr& upload, absl::StatusOr<UploadTicket> ticket) {
  std::vector<UploadTicket> garbage;
  MutexLock lock(mutex_);
  if (upload->cancelled.load()) {
    if (ticket.ok()) garbage.push_back(*std::move(ticket));
    return;
  }
  if (!ticket.ok()) {
    CompleteLocked(
        upload,
        ErrorAck(upload->plan.index, AsText(upload->plan.metadata.content_hash), ticket.status()),
        &garbage);
    return;
  }
  upload->ticket = *std::move(ticket);
  upload->state = Upload::State::kReceiving;
  last_message_ms_ = engine_.clock().MonotonicMs();  // the client's turn starts now
  v1::PutBlocksResponse response;
  response.mutable_credit()->set_index(upload->plan.index);
  SendLocked(std::move(response));
}

absl::StatusOr<PutStream::UploadPtr> PutStream::FindReceiving(uint32_t index) {
  if (!target_) return BadPayload("the first message of PutBlocks must be open");
  MutexLock lock(mutex_);
  const auto it = uploads_.find(index);
  if (it == uploads_.end()) {
    if (failed_.contains(index)) return UploadPtr();
    return BadPayload(absl::StrCat("a part of block ", index,
                                   " came without a credit for it; wait for the credit"));
  }
  if (it->second->state != Upload::State::kReceiving) {
    return BadPayload(absl::StrCat("a part of block ", index,
                                   it->second->state == Upload::State::kWaiting
                                       ? " came before its credit; wait for the credit"
                                       : " came after its payload was whole"));
  }
  return it->second;
}

absl::Status PutStream::HandlePart(const PutPartView& part) {
  LKV_ASSIGN_OR_RETURN(const UploadPtr upload, FindReceiving(part.index));
  if (!upload) return absl::OkStatus();
  const absl::Status taken = TakePart(upload, part);
  if (!taken.ok()) {
    FailUpload(upload, taken);
    return absl::OkStatus();
  }
  bool whole;
  {
    MutexLock lock(mutex_);
    whole = !upload->cancelled.load() && upload->staging.size() == upload->plan.payload_bytes;
    if (whole) upload->state = Upload::State::kEncoding;
  }
  if (whole) StartEncoding(upload);
  return absl::OkStatus();
}

absl::Status PutStream::TakePart(const UploadPtr& upload, const PutPartView& part) {
  // Taken out while it grows: only this thread appends, and a stream that ends meanwhile finds
  // nothing to free.
  ByteVector staging;
  {
    MutexLock lock(mutex_);
    if (upload->cancelled.load()) return absl::OkStatus();
    LKV_RETURN_IF_ERROR(CheckPart(part, upload->staging.size(), upload->plan.payload_bytes));
    staging = std::move(upload->staging);
  }
  if (staging.capacity() == 0) staging = engine_.staging().Take(upload->plan.payload_bytes);
  LKV_RETURN_IF_ERROR(AppendPart(part, staging));
  MutexLock lock(mutex_);
  if (!upload->cancelled.load()) upload->staging = std::move(staging);
  return absl::OkStatus();
}

absl::Status PutStream::HandleRegionPart(const v1::RegionPart& part) {
  LKV_ASSIGN_OR_RETURN(const UploadPtr upload, FindReceiving(part.index()));
  if (!upload) return absl::OkStatus();
  if (part.has_table()) {
    if (const auto gpu = engine_.gpu_regions().Find(part.region_id())) {
      EncodeFromGpu(upload, *gpu, part);
    } else {
      FailUpload(upload, NoSuchGpuRegion());
    }
    return absl::OkStatus();
  }
  std::shared_ptr<SharedRegion> region = regions_.Find(part.region_id());
  bool began;
  {
    MutexLock lock(mutex_);
    began = !upload->staging.empty();
    if (region && !began) {
      upload->place = {std::move(region), part.region_offset(), {}};
      if (part.has_crc32c()) upload->place->crc32c = part.crc32c();
      upload->state = Upload::State::kEncoding;
    }
  }
  if (began) {
    FailUpload(upload, BadPayload("a block comes either in parts or in a region, not both"));
  } else if (!upload->place) {
    FailUpload(upload, BadPayload("there is no such region of shared memory; open one"));
  } else {
    StartEncoding(upload);
  }
  return absl::OkStatus();
}

void PutStream::EncodeFromGpu(const UploadPtr& upload, const GpuCacheRegion& region,
                              const v1::RegionPart& part) {
  const BlockMetadata& m = upload->plan.metadata;
  absl::Status error;
  if (target_->frames || region.fingerprint() != m.fingerprint) {
    error = BadPayload("GPU memory holds raw blocks of the layout that it was handed over with");
  } else {
    auto placement = region.Place(part.table(), m.start_position, m.tokens);
    MutexLock lock(mutex_);
    if (!placement.ok()) {
      error = WithReason(placement.status(), v1::REASON_BAD_PAYLOAD);
    } else if (!upload->staging.empty()) {
      error = BadPayload("a block comes either in parts or in a region, not both");
    } else {
      upload->plan.placement = *std::move(placement);
      upload->state = Upload::State::kEncoding;
    }
  }
  if (error.ok()) {
    StartEncoding(upload);
  } else {
    FailUpload(upload, error);
  }
}

void PutStream::FailUpload(const UploadPtr& upload, const absl::Status& error) {
  std::vector<UploadTicket> garbage;
  MutexLock lock(mutex_);
  if (upload->cancelled.load()) return;
  failed_.insert(upload->plan.index);
  CompleteLocked(upload,
                 ErrorAck(upload->plan.index, AsText(upload->plan.metadata.content_hash), error),
                 &garbage);
}

void PutStream::StartEncoding(const UploadPtr& upload) {
  const bool taken = engine_.codec_pool().Submit(
      CodecPool::Kind::kEncode, [self = shared_from_this(), upload] { self->Encode(upload); });
  if (taken) return;
  FailUpload(upload, LimitError("kMaxCodecQueueJobs",
                                "the codec threads are too far behind; put the block again later"));
}

void PutStream::Encode(const UploadPtr& upload) {
  Payload payload;
  UploadTicket ticket;
  {
    MutexLock lock(mutex_);
    if (upload->cancelled.load()) return;
    payload.own = std::move(upload->staging);
    ticket = std::move(upload->ticket);
  }
  if (upload->place) {
    auto fetched = FetchFromRegion(*upload->place, upload->plan.payload_bytes, target_->frames,
                                   engine_.staging());
    if (!fetched.ok()) {
      FailUpload(upload, fetched.status());
      return;
    }
    payload = *std::move(fetched);
  }
  v1::BlockAck ack = StoreBlock(engine_, *target_, upload->plan, std::move(payload),
                                std::move(ticket), upload->cancelled);
  Acknowledge(upload, std::move(ack));
}

void PutStream::Acknowledge(const UploadPtr& upload, v1::BlockAck ack) {
  auto complete = [self = shared_from_this(), upload](v1::BlockAck finished) {
    std::vector<UploadTicket> garbage;
    MutexLock lock(self->mutex_);
    if (!upload->cancelled.load()) self->CompleteLocked(upload, std::move(finished), &garbage);
  };
  if (target_->durable) {
    FinishDurable(engine_, upload->plan, std::move(ack), std::move(complete));
  } else {
    complete(std::move(ack));
  }
}

void PutStream::CompleteLocked(const UploadPtr& upload, v1::BlockAck ack,
                               std::vector<UploadTicket>* garbage) {
  garbage->push_back(std::move(upload->ticket));
  ByteVector().swap(upload->staging);
  uploads_.erase(upload->plan.index);
  upload->cancelled.store(true);
  v1::PutBlocksResponse response;
  *response.mutable_ack() = std::move(ack);
  SendLocked(std::move(response));
}

void PutStream::SendLocked(v1::PutBlocksResponse response) {
  if (finished_) return;
  responses_.push_back(ToByteBuffer(response));
  if (!writing_) {
    writing_ = true;
    write_start_ms_ = engine_.clock().MonotonicMs();
    StartWrite(&responses_.front());
  }
}

void PutStream::OnWriteDone(bool ok) {
  MutexLock lock(mutex_);
  writing_ = false;
  responses_.pop_front();
  if (finished_ || !ok) return;  // the end of a broken stream comes through OnCancel
  if (!responses_.empty()) {
    writing_ = true;
    write_start_ms_ = engine_.clock().MonotonicMs();
    StartWrite(&responses_.front());
  }
  ReadNextLocked();
  FinishIfDoneLocked();
}

void PutStream::ReadNextLocked() {
  if (reading_ || half_closed_ || finished_) return;
  // A client that does not read its responses is not read from either.
  if (responses_.size() >= kMaxUnreadResponses) return;
  // At the window's limit, reading goes on only while uploads need their parts.
  if (uploads_.size() >= limits::kMaxUnackedBlocksPerStream && !ReceivingLocked()) return;
  reading_ = true;
  StartRead(&message_);
}

bool PutStream::ReceivingLocked() const {
  for (const auto& [index, upload] : uploads_) {
    if (upload->state != Upload::State::kEncoding) return true;
  }
  return false;
}

void PutStream::HandleHalfClose() {
  std::vector<std::pair<UploadPtr, uint64_t>> broken;  // with their admission ids
  {
    MutexLock lock(mutex_);
    reading_ = false;
    half_closed_ = true;
    if (finished_) return;
    for (const auto& [index, upload] : uploads_) {
      if (upload->state == Upload::State::kEncoding) continue;
      broken.emplace_back(upload, upload->admission_id);
    }
  }
  for (const auto& [upload, admission_id] : broken) {
    engine_.admission().Cancel(admission_id);
    FailUpload(upload, BadPayload("the stream ended before the payload was whole"));
  }
  MutexLock lock(mutex_);
  FinishIfDoneLocked();
}

void PutStream::FinishIfDoneLocked() {
  if (finished_ || !half_closed_ || writing_ || !responses_.empty() || !uploads_.empty()) return;
  finished_ = true;
  finish_ms_ = engine_.clock().MonotonicMs();
  Finish(grpc::Status::OK);
}

void PutStream::Abort(const absl::Status& status) {
  std::vector<uint64_t> admission_ids;
  std::vector<UploadTicket> garbage;
  {
    MutexLock lock(mutex_);
    if (finished_) return;
    finished_ = true;
    finish_ms_ = engine_.clock().MonotonicMs();
    for (const auto& [index, upload] : uploads_) {
      upload->cancelled.store(true);
      garbage.push_back(std::move(upload->ticket));
      ByteVector().swap(upload->staging);
      admission_ids.push_back(upload->admission_id);
    }
    uploads_.clear();
    Finish(ToGrpcStatus(status));
  }
  for (const uint64_t id : admission_ids) engine_.admission().Cancel(id);
}

void PutStream::OnCancel() { Abort(absl::CancelledError("the stream was cancelled")); }

void PutStream::OnTick() {
  const int64_t now_ms = engine_.clock().MonotonicMs();
  absl::Status end;
  {
    MutexLock lock(mutex_);
    if (done_) return;
    const int64_t stall_ms = engine_.config().reader_stall_timeout_ms;
    if ((writing_ && now_ms - write_start_ms_ > stall_ms) ||
        (finished_ && now_ms - finish_ms_ > stall_ms)) {
      context_->TryCancel();  // the client does not even take the bytes of the end
      return;
    }
    if (finished_) return;
    bool receiving = false;
    for (const auto& [index, upload] : uploads_) {
      receiving |= upload->state == Upload::State::kReceiving;
    }
    if (receiving && reading_ &&
        now_ms - last_message_ms_ > engine_.config().upload_idle_timeout_ms) {
      end = ErrorWith(absl::StatusCode::kDeadlineExceeded, v1::REASON_LIMIT,
                      "an upload was idle for too long and was cancelled; put its blocks again",
                      "kUploadIdleTimeoutMs");
    } else if (engine_.draining() && uploads_.empty() && responses_.empty()) {
      end = ErrorWith(absl::StatusCode::kUnavailable, v1::REASON_DRAINING,
                      "the daemon is shutting down; connect again when it is back");
    }
  }
  if (!end.ok()) Abort(end);
}

void PutStream::OnDone() {
  --engine_.metrics().open_streams;
  std::shared_ptr<PutStream> self;
  MutexLock lock(mutex_);
  done_ = true;
  self = std::move(self_);
  // `self` outlives the lock: it was declared before.
}

}  // namespace latticekv
