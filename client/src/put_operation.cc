#include "client/src/put_operation.h"

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/src/call_limit.h"
#include "client/src/gpu_cache.h"
#include "client/src/proto_convert.h"
#include "core/base/crc32c.h"
#include "core/base/status_macros.h"

namespace latticekv {

PutAttempt::PutAttempt(const PutRoute& route, const ClientOptions& options, PutWork& work)
    : route_(route),
      options_(options),
      work_(work),
      stream_(route.stub->PutBlocks()),
      states_(work.chunks.size(), State::kWaiting),
      credited_(work.chunks.size(), false),
      lent_(work.chunks.size(), false),
      watchdog_(options.stream_idle_timeout_ms, [this] { stream_->Cancel(); }) {
  for (const PutChunk& chunk : work_.chunks) {
    if (work_.settled[chunk.index]) {
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
  *message.mutable_open() = MakePutOpen(*work_.chunks.front().request);
  bool good = stream_->Write(message);
  uint32_t chunk = 0;
  while (good) {
    const Step step = NextStep(chunk);
    if (step == Step::kDone) return;
    good = step == Step::kSend ? SendPayload(chunk) : Announce(chunk);
    watchdog_.Touch();
  }
}

bool PutAttempt::Announce(uint32_t chunk) {
  const PutChunk& what = work_.chunks[chunk];
  v1::PutBlocksRequest message;
  *message.mutable_header() = MakeBlockHeader(what);
  if (what.request->compress_on_worker) {
    std::erase_if(frames_, [this](const auto& frame) { return Unwanted(frame.first); });
    auto frame = EncodeChunk(what);
    if (!frame.ok()) {
      work_.results[chunk].status = frame.status();
      MutexLock lock(mutex_);
      SettleLocked(chunk, true);
      return true;
    }
    message.mutable_header()->set_payload_bytes(frame->size());
    frames_[chunk] = *std::move(frame);
  }
  return stream_->Write(message);
}

PutAttempt::Step PutAttempt::NextStep(uint32_t& chunk) {
  MutexLock lock(mutex_);
  while (true) {
    if (ended_ || stopping_ || unsettled_ == 0) return Step::kDone;
    if (!ready_.empty()) {
      chunk = ready_.front();
      ready_.pop_front();
      return Step::kSend;
    }
    if (!waiting_.empty()) {
      const uint64_t bytes = InflightBytes(waiting_.front());
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

uint64_t PutAttempt::InflightBytes(uint32_t chunk) const {
  const PutChunk& what = work_.chunks[chunk];
  return what.request->gpu.cache == nullptr ? what.payload_bytes : 0;
}

void PutAttempt::Cancel() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    changed_.SignalAll();
    if (std::find(lent_.begin(), lent_.end(), true) != lent_.end()) return;
  }
  stream_->Cancel();
}

bool PutAttempt::SendPayload(uint32_t chunk) {
  if (work_.chunks[chunk].request->gpu.cache != nullptr) return SendGpuPart(chunk);
  const auto frame = frames_.find(chunk);
  const size_t bytes =
      frame == frames_.end() ? work_.chunks[chunk].payload_bytes : frame->second.size();
  if (RegionSlot slot = WaitForSlot(bytes)) return SendThroughRegion(chunk, std::move(slot));
  return frame == frames_.end() ? SendParts(chunk) : SendFrame(chunk);
}

RegionSlot PutAttempt::WaitForSlot(size_t bytes) {
  if (route_.regions == nullptr) return {};
  while (const std::shared_ptr<ClientRegion> region = route_.regions->Region()) {
    if (const auto offset = region->Allocate(bytes)) return {region, *offset};
    MutexLock lock(mutex_);
    if (slots_.empty() || ended_) break;
    changed_.Wait(mutex_);
  }
  return {};
}

bool PutAttempt::SendThroughRegion(uint32_t chunk, RegionSlot slot) {
  v1::PutBlocksRequest message;
  v1::RegionPart& part = *message.mutable_region_part();
  part.set_index(chunk);
  part.set_region_id(slot.region_id());
  part.set_region_offset(slot.offset());
  if (const auto frame = frames_.find(chunk); frame != frames_.end()) {
    std::memcpy(slot.data(), frame->second.data(), frame->second.size());
    work_.sent_bytes[chunk] += frame->second.size();
    frames_.erase(frame);
  } else {
    PayloadReader(work_.chunks[chunk]).CopyAll(slot.data());
    work_.sent_bytes[chunk] += work_.chunks[chunk].payload_bytes;
  }
  {
    // The server may refuse the block before it has come, and an acknowledgement may come before
    // Write returns.
    MutexLock lock(mutex_);
    if (ended_ || states_[chunk] == State::kSettled) return !ended_;
    slots_[chunk] = std::move(slot);
  }
  return stream_->Write(message);
}

bool PutAttempt::SendGpuPart(uint32_t chunk) {
  v1::PutBlocksRequest message;
  *message.mutable_region_part() = MakeGpuPart(work_.chunks[chunk]);
  {
    MutexLock lock(mutex_);
    if (ended_ || stopping_ || states_[chunk] == State::kSettled) return !ended_;
    lent_[chunk] = true;
  }
  return stream_->Write(message);
}

bool PutAttempt::SendParts(uint32_t chunk) {
  PayloadReader payload(work_.chunks[chunk]);
  while (!payload.done()) {
    if (Unwanted(chunk)) return true;
    const PartBuffer data = pool_.Take();
    const uint64_t offset = payload.offset();
    const uint32_t crc = payload.NextPart(*data);
    if (!SendPart(chunk, offset, crc, data)) return false;
  }
  return true;
}

bool PutAttempt::SendFrame(uint32_t chunk) {
  const ByteVector frame = std::move(frames_[chunk]);
  frames_.erase(chunk);
  for (size_t offset = 0; offset < frame.size();) {
    if (Unwanted(chunk)) return true;
    const ByteSpan bytes =
        ByteSpan(frame).subspan(offset, std::min(limits::kMaxPartBytes, frame.size() - offset));
    const PartBuffer data = pool_.Take();
    data->assign(AsText(bytes));
    if (!SendPart(chunk, offset, Crc32c(bytes), data)) return false;
    offset += bytes.size();
  }
  return true;
}

bool PutAttempt::SendPart(uint32_t chunk, uint64_t offset, uint32_t crc, const PartBuffer& data) {
  if (!stream_->WritePart(chunk, offset, crc, data)) return false;
  work_.sent_bytes[chunk] += data->size();
  watchdog_.Touch();
  return true;
}

// The server may refuse a block before all of it has come.
bool PutAttempt::Unwanted(uint32_t chunk) {
  MutexLock lock(mutex_);
  return ended_ || states_[chunk] == State::kSettled;
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
  if (index >= work_.chunks.size() || states_[index] != State::kAnnounced || credited_[index]) {
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
  bool never_sent;
  {
    MutexLock lock(mutex_);
    if (index >= work_.chunks.size() || states_[index] != State::kAnnounced ||
        (!ack.has_error() && ack.content_hash() != BytesString(work_.chunks[index].content_hash))) {
      return absl::InternalError(
          absl::StrCat("put: the server acknowledged block ", index, ", which is not due"));
    }
    block = &work_.results[index];
    never_sent = stopping_ && !lent_[index];
  }
  block->status = ack.has_error() ? StatusFromDetail(FromProto(ack.error())) : absl::OkStatus();
  block->have_it = ack.have_it();
  block->stored_bytes = ack.stored_bytes();
  block->raw_bytes = ack.raw_bytes();
  block->quality = FromProto(ack.quality());
  block->state =
      ack.state() == v1::BLOCK_STATE_DURABLE ? BlockState::kDurable : BlockState::kMemory;
  const bool again = IsRegionGone(block->status) && !work_.region_gone[index];
  if (again) work_.region_gone[index] = true;
  const bool settled =
      !again && !RetryPolicy::IsTransient(block->status) && (block->status.ok() || !never_sent);
  const PutRequest& request = *work_.chunks[index].request;
  if (settled && request.on_block) request.on_block(*block);
  MutexLock lock(mutex_);
  SettleLocked(index, settled);
  return absl::OkStatus();
}

void PutAttempt::SettleLocked(uint32_t chunk, bool settled) {
  work_.settled[chunk] = settled;
  states_[chunk] = State::kSettled;
  --inflight_blocks_;
  inflight_bytes_ -= InflightBytes(chunk);
  --unsettled_;
  std::erase(ready_, chunk);
  slots_.erase(chunk);
  lent_[chunk] = false;
  changed_.SignalAll();
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

namespace {

// What all chunks of one stream share.
bool FitOneStream(const PutRequest& a, const PutRequest& b) {
  return a.layout.fingerprint == b.layout.fingerprint &&
         a.layout.name_space == b.layout.name_space && a.session == b.session &&
         a.preset == b.preset && a.seed == b.seed && a.durable == b.durable &&
         a.ttl_ms == b.ttl_ms && a.compress_on_worker == b.compress_on_worker;
}

absl::StatusOr<PutWork> PlanWork(const std::vector<const PutRequest*>& requests) {
  PutWork work;
  for (const PutRequest* request : requests) {
    if (!FitOneStream(*requests.front(), *request)) {
      return absl::InvalidArgumentError(
          "put: all puts of a batch share layout, session, preset, durability, life time and the "
          "side that compresses");
    }
    LKV_ASSIGN_OR_RETURN(std::vector<PutChunk> chunks, PlanPut(*request));
    for (PutChunk& chunk : chunks) {
      chunk.index = static_cast<uint32_t>(work.chunks.size());
      BlockResult& block = work.results.emplace_back();
      block.content_hash = chunk.content_hash;
      block.start_position = chunk.start_position;
      block.tokens = static_cast<uint32_t>(chunk.tokens.size());
      work.chunks.push_back(chunk);
    }
  }
  work.settled.resize(work.chunks.size());
  work.sent_bytes.resize(work.chunks.size());
  work.region_gone.resize(work.chunks.size());
  return work;
}

// Leases the GPU memory that chunks lie in, unless the server has it.
absl::Status LeaseCaches(const PutRoute& route, const CallLimit& limit, PutWork& work) {
  for (PutChunk& chunk : work.chunks) {
    const GpuBlockTable& table = chunk.request->gpu;
    if (table.cache == nullptr || work.settled[chunk.index]) continue;
    LKV_ASSIGN_OR_RETURN(LeasedGpuCache* const cache, LeasedCache("put", table, route.lease_stub));
    if (work.region_gone[chunk.index]) cache->Retire(chunk.gpu_region);
    LKV_ASSIGN_OR_RETURN(chunk.gpu_region, cache->Region(limit.LeftMs()));
  }
  return absl::OkStatus();
}

std::vector<PutResult> Results(const std::vector<const PutRequest*>& requests, PutWork work) {
  std::vector<PutResult> out;
  size_t at = 0;
  for (const PutRequest* request : requests) {
    PutResult& result = out.emplace_back();
    for (; at < work.chunks.size() && work.chunks[at].request == request; ++at) {
      result.sent_bytes += work.sent_bytes[at];
      result.blocks.push_back(std::move(work.results[at]));
      const BlockResult& block = result.blocks.back();
      if (!block.status.ok()) continue;
      result.stored_bytes += block.stored_bytes;
      result.raw_bytes += block.raw_bytes;
    }
  }
  return out;
}

absl::Status RunAttempt(const PutRoute& route, const ClientOptions& options, PutWork& work,
                        const CallLimit& limit) {
  LKV_RETURN_IF_ERROR(LeaseCaches(route, limit, work));
  PutAttempt attempt(route, options, work);
  const CallGuard guard(limit, [&] { attempt.Cancel(); });
  return attempt.Run();
}

}  // namespace

absl::StatusOr<std::vector<PutResult>> RunPuts(const PutRoute& route,
                                               const std::vector<const PutRequest*>& requests,
                                               const ClientOptions& options, RetryState retry) {
  if (requests.empty()) return std::vector<PutResult>();
  LKV_ASSIGN_OR_RETURN(PutWork work, PlanWork(requests));
  const CallLimit limit(requests.front()->timeout_ms, requests.front()->cancel);
  while (true) {
    LKV_RETURN_IF_ERROR(limit.Check("put"));
    const auto settled_before = std::count(work.settled.begin(), work.settled.end(), true);
    absl::Status status = RunAttempt(route, options, work, limit);
    const auto settled_after = std::count(work.settled.begin(), work.settled.end(), true);
    if (settled_after == static_cast<int64_t>(work.chunks.size())) break;
    LKV_RETURN_IF_ERROR(limit.Check("put"));
    if (settled_after > settled_before) retry.Reset();
    // Blocks refused for now (the server drains): the stream went well, but the put is not done.
    const bool refused = status.ok();
    for (const BlockResult& block : work.results) {
      if (refused && status.ok() && RetryPolicy::IsTransient(block.status)) status = block.status;
    }
    if (status.ok()) continue;  // the server had lost the GPU memory of what is left, and no more
    if (retry.WaitToRetry(status, limit.LeftMs())) continue;
    if (!refused) return status;
    break;
  }
  return Results(requests, std::move(work));
}

}  // namespace latticekv
