#include "client/src/put_operation.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/src/proto_convert.h"
#include "core/base/crc32c.h"
#include "core/base/status_macros.h"

namespace latticekv {

PutAttempt::PutAttempt(Stub& stub, const PutRequest& request, const std::vector<PutChunk>& chunks,
                       const ClientOptions& options, std::vector<bool>& settled, PutResult& result)
    : request_(request),
      chunks_(chunks),
      options_(options),
      settled_(settled),
      result_(result),
      stream_(stub.PutBlocks()),
      watchdog_(options.stream_idle_timeout_ms, [this] { stream_->Cancel(); }),
      states_(chunks.size(), State::kWaiting),
      credited_(chunks.size(), false) {
  for (const PutChunk& chunk : chunks_) {
    if (settled_[chunk.index]) {
      states_[chunk.index] = State::kSettled;
    } else {
      waiting_.push_back(chunk.index);
    }
  }
  unsettled_ = static_cast<uint32_t>(waiting_.size());
}

absl::Status PutAttempt::Run() {
  std::thread reader([this] { ReadAll(); });
  WriteAll();
  stream_->WritesDone();
  reader.join();
  absl::Status status = stream_->Finish();
  result_.sent_bytes += sent_bytes_;

  MutexLock lock(mutex_);
  if (!broken_.ok()) return broken_;
  if (unsettled_ == 0) return absl::OkStatus();
  if (watchdog_.fired()) {
    return absl::UnavailableError(
        absl::StrCat("put: no word from the server for ", options_.stream_idle_timeout_ms, " ms"));
  }
  if (!status.ok()) return status;
  return absl::UnavailableError(
      absl::StrCat("put: the server ended the stream with ", unsettled_, " blocks unacknowledged"));
}

void PutAttempt::WriteAll() {
  v1::PutBlocksRequest message;
  *message.mutable_open() = MakePutOpen(request_);
  bool good = stream_->Write(message);
  uint32_t chunk = 0;
  while (good) {
    const Step step = NextStep(chunk);
    if (step == Step::kDone) return;
    if (step == Step::kSend) {
      good = SendPayload(chunk);
      continue;
    }
    *message.mutable_header() = MakeBlockHeader(request_, chunks_[chunk]);
    good = stream_->Write(message);
    watchdog_.Touch();
  }
}

PutAttempt::Step PutAttempt::NextStep(uint32_t& chunk) {
  MutexLock lock(mutex_);
  while (true) {
    if (ended_ || unsettled_ == 0) return Step::kDone;
    if (!ready_.empty()) {
      chunk = ready_.front();
      ready_.pop_front();
      return Step::kSend;
    }
    if (!waiting_.empty()) {
      const uint64_t bytes = chunks_[waiting_.front()].payload_bytes;
      const uint32_t max_blocks =
          std::clamp<uint32_t>(options_.max_inflight_blocks, 1, limits::kMaxUnackedBlocksPerStream);
      if (inflight_blocks_ == 0 || (inflight_blocks_ < max_blocks &&
                                    inflight_bytes_ + bytes <= options_.max_inflight_bytes)) {
        chunk = waiting_.front();
        waiting_.pop_front();
        states_[chunk] = State::kAnnounced;
        ++inflight_blocks_;
        inflight_bytes_ += bytes;
        return Step::kAnnounce;
      }
    }
    changed_.Wait(mutex_);
  }
}

bool PutAttempt::SendPayload(uint32_t chunk) {
  PayloadReader payload(request_, chunks_[chunk]);
  v1::PutBlocksRequest message;
  v1::BlockPart& part = *message.mutable_part();
  part.set_index(chunk);
  while (!payload.done()) {
    {
      MutexLock lock(mutex_);
      // The server may refuse a block before all of it has come.
      if (ended_ || states_[chunk] == State::kSettled) return !ended_;
    }
    part.set_offset(payload.offset());
    payload.NextPart(*part.mutable_data());
    part.set_crc32c(Crc32c(AsBytes(part.data())));
    if (!stream_->Write(message)) return false;
    sent_bytes_ += part.data().size();
    watchdog_.Touch();
  }
  return true;
}

void PutAttempt::ReadAll() {
  v1::PutBlocksResponse message;
  while (stream_->Read(message)) {
    watchdog_.Touch();
    absl::Status status;
    if (message.has_credit()) {
      status = OnCredit(message.credit());
    } else if (message.has_ack()) {
      status = OnAck(message.ack());
    }
    if (!status.ok()) Break(std::move(status));
  }
  MutexLock lock(mutex_);
  ended_ = true;
  changed_.SignalAll();
}

absl::Status PutAttempt::OnCredit(const v1::BlockCredit& credit) {
  MutexLock lock(mutex_);
  const uint32_t index = credit.index();
  if (index >= chunks_.size() || states_[index] != State::kAnnounced || credited_[index]) {
    return absl::InternalError(
        absl::StrCat("put: the server asked for block ", index, ", which is not due"));
  }
  credited_[index] = true;
  ready_.push_back(index);
  changed_.SignalAll();
  return absl::OkStatus();
}

absl::Status PutAttempt::OnAck(const v1::BlockAck& ack) {
  const uint32_t index = ack.index();
  BlockResult* block = nullptr;
  {
    MutexLock lock(mutex_);
    if (index >= chunks_.size() || states_[index] != State::kAnnounced ||
        (!ack.has_error() && ack.content_hash() != BytesString(chunks_[index].content_hash))) {
      return absl::InternalError(
          absl::StrCat("put: the server acknowledged block ", index, ", which is not due"));
    }
    block = &result_.blocks[index];
  }
  block->status = ack.has_error() ? StatusFromDetail(FromProto(ack.error())) : absl::OkStatus();
  block->have_it = ack.have_it();
  block->stored_bytes = ack.stored_bytes();
  block->raw_bytes = ack.raw_bytes();
  block->quality = FromProto(ack.quality());
  block->state =
      ack.state() == v1::BLOCK_STATE_DURABLE ? BlockState::kDurable : BlockState::kMemory;
  const bool settled = !RetryPolicy::IsTransient(block->status);
  if (settled && request_.on_block) request_.on_block(*block);

  MutexLock lock(mutex_);
  settled_[index] = settled;
  states_[index] = State::kSettled;
  --inflight_blocks_;
  inflight_bytes_ -= chunks_[index].payload_bytes;
  --unsettled_;
  std::erase(ready_, index);
  changed_.SignalAll();
  return absl::OkStatus();
}

void PutAttempt::Break(absl::Status why) {
  MutexLock lock(mutex_);
  if (broken_.ok()) broken_ = std::move(why);
  ended_ = true;
  changed_.SignalAll();
  stream_->Cancel();
}

absl::Status PutResult::status() const {
  for (const BlockResult& block : blocks) {
    if (!block.status.ok()) return block.status;
  }
  return absl::OkStatus();
}

absl::StatusOr<PutResult> RunPut(Stub& stub, const PutRequest& request,
                                 const ClientOptions& options, RetryState retry) {
  LKV_ASSIGN_OR_RETURN(const std::vector<PutChunk> chunks, PlanPut(request));
  PutResult result;
  for (const PutChunk& chunk : chunks) {
    BlockResult& block = result.blocks.emplace_back();
    block.content_hash = chunk.content_hash;
    block.start_position = chunk.start_position;
    block.tokens = static_cast<uint32_t>(chunk.tokens.size());
  }
  std::vector<bool> settled(chunks.size(), false);
  while (true) {
    const auto settled_before = std::count(settled.begin(), settled.end(), true);
    absl::Status status = PutAttempt(stub, request, chunks, options, settled, result).Run();
    const auto settled_after = std::count(settled.begin(), settled.end(), true);
    if (settled_after == static_cast<int64_t>(chunks.size())) break;
    if (settled_after > settled_before) retry.Reset();
    // Blocks refused for now (the server drains): the stream went well, but the put is not done.
    const bool refused = status.ok();
    for (const BlockResult& block : result.blocks) {
      if (refused && status.ok() && RetryPolicy::IsTransient(block.status)) status = block.status;
    }
    if (retry.WaitToRetry(status)) continue;
    if (!refused) return status;
    break;
  }
  for (const BlockResult& block : result.blocks) {
    if (!block.status.ok()) continue;
    result.stored_bytes += block.stored_bytes;
    result.raw_bytes += block.raw_bytes;
  }
  return result;
}

}  // namespace latticekv
