#include "server/get_stream.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "proto/part_wire.h"
#include "server/error_detail.h"
#include "server/grpc_status.h"

namespace latticekv {
namespace {

// Parts of one message, each of some 30 bytes.
constexpr size_t kMaxWindowParts = 256;

absl::Status TooBusy() {
  return LimitError("kMaxCodecQueueJobs", "the codec threads are too far behind; ask again later");
}

absl::Status DiskTooBusy() {
  return LimitError("kMaxReadQueueJobs", "the disk is too far behind; ask again later");
}

// Of the memory, for what one stream may decode ahead, where that is more than kLeastWindowBytes.
constexpr size_t kWindowShare = 32;
constexpr size_t kLeastWindowBytes = 4 << 20;

size_t WindowBytes(const ServerConfig& config) {
  return std::min(config.decode_ahead_bytes,
                  std::max(config.memory_bytes / kWindowShare, kLeastWindowBytes));
}

}  // namespace

GetStream::GetStream(CacheEngine& engine, const RegionRegistry& regions,
                     grpc::CallbackServerContext* context, const v1::GetBlocksRequest& request)
    : engine_(engine), regions_(regions), context_(context), request_(request) {
  ++engine_.metrics().open_streams;
}

GetStream* GetStream::Start(CacheEngine& engine, const RegionRegistry& regions,
                            grpc::CallbackServerContext* context,
                            const std::optional<v1::GetBlocksRequest>& request) {
  std::shared_ptr<GetStream> stream(
      new GetStream(engine, regions, context, request.value_or(v1::GetBlocksRequest())));
  stream->self_ = stream;
  engine.monitor().Watch(stream);
  if (!request) {
    MutexLock lock(stream->mutex_);
    stream->FinishLocked(absl::InvalidArgumentError("the GetBlocks request is not protobuf"));
    return stream.get();
  }
  if (!engine.codec_pool().Submit(CodecPool::Kind::kDecode, [stream] { stream->Prepare(); })) {
    MutexLock lock(stream->mutex_);
    stream->FinishLocked(TooBusy());
  }
  return stream.get();
}

void GetStream::Prepare() {
  {
    MutexLock lock(mutex_);
    if (finished_) return;
  }
  auto plan = PlanRead(engine_, request_);
  absl::StatusOr<std::unique_ptr<GetWindow>> window = nullptr;
  if (request_.has_window()) window = GetWindow::Open(regions_, request_.window());
  MutexLock lock(mutex_);
  if (finished_) return;
  if (!plan.ok() || !window.ok()) {
    FinishLocked(plan.ok() ? window.status() : plan.status());
    return;
  }
  window_ = *std::move(window);
  plan_ = *std::move(plan);
  for (const auto& block : plan_.blocks) {
    dead_.push_back(block->block == nullptr);
    sources_.push_back(!block->on_disk() ? Source::kMemory
                       : block->promote  ? Source::kComing
                                         : Source::kDisk);
    in_memory_.push_back(block->on_disk() ? nullptr : block->block);
    if (!block->block) continue;
    if (AnyOrder() && sources_.back() == Source::kComing) {
      ++awaited_;
    } else {
      next_.emplace(plan_.first_layer, block->index);
    }
  }
  StartLoadsLocked();
  if (finished_) return;
  prepared_ = true;
  ScheduleLocked();
  PumpLocked();
}

void GetStream::StartLoadsLocked() {
  const int64_t turn = ReadPool::TurnOf(engine_.clock().MonotonicMs(), plan_.promoted.bytes());
  for (uint32_t i = 0; i < sources_.size(); ++i) {
    if (sources_[i] != Source::kComing) continue;
    if (!engine_.read_pool().Submit(turn, [self = shared_from_this(), i] { self->Load(i); })) {
      FinishLocked(DiskTooBusy());
      return;
    }
  }
}

void GetStream::Load(uint32_t block) {
  const ReadBlock* read;
  {
    MutexLock lock(mutex_);
    if (finished_) return;
    read = plan_.blocks[block].get();
  }
  StoredBlockPtr loaded = LoadBlock(engine_.store(), *read);
  MutexLock lock(mutex_);
  if (finished_) return;
  sources_[block] = loaded ? Source::kMemory : Source::kDisk;
  in_memory_[block] = std::move(loaded);
  if (AnyOrder()) {
    --awaited_;
    next_.emplace(plan_.first_layer, block);
    ScheduleLocked();
    PumpLocked();
    return;
  }
  for (size_t i = 0; !finished_ && i < items_.size(); ++i) {
    const ItemPtr item = items_[i];
    if (item->waiting && item->block == block) StartLocked(item);
  }
}

bool GetStream::AdvanceLocked() {
  const uint32_t end_layer = WholeBlocks() ? plan_.first_layer + 1 : plan_.end_layer;
  while (!next_.empty()) {
    const auto [layer, block] = next_.top();
    const bool over = dead_[block] || layer >= end_layer;
    if (!over && (WholeBlocks() || LayerBytes(*plan_.blocks[block], layer) > 0)) return true;
    next_.pop();
    if (!over) next_.emplace(layer + 1, block);
  }
  return false;
}

void GetStream::ScheduleLocked() {
  while (!finished_ && AdvanceLocked()) {
    // A frame lies in the store already: the window pays for the part that is copied out of it.
    const auto [next_layer, next_block] = next_.top();
    const ReadBlock& block = *plan_.blocks[next_block];
    // One on disk may have to be read whole, to be checked before its first byte is sent.
    const size_t frame_bytes = block.block->frame_bytes;
    const bool in_memory = sources_[next_block] == Source::kMemory;
    const size_t bytes =
        WholeBlocks() ? (in_memory ? std::min(limits::kMaxPartBytes, frame_bytes) : frame_bytes)
        : in_memory   ? LayerBytes(block, next_layer)
                      : LayerMemoryBytes(block, next_layer);
    if (!items_.empty() && window_bytes_ + bytes > WindowBytes(engine_.config())) return;
    auto reservation = engine_.store().Reserve(bytes);
    if (!reservation.ok()) {
      if (!items_.empty()) return;  // tried again when an item was sent
      const int64_t now_ms = engine_.clock().MonotonicMs();
      if (starved_since_ms_ == 0) starved_since_ms_ = now_ms;
      if (now_ms - starved_since_ms_ > engine_.config().credit_wait_timeout_ms) {
        FinishLocked(WithReason(reservation.status(), v1::REASON_MEMORY_FULL));
      }
      return;  // tried again at the next tick
    }
    starved_since_ms_ = 0;
    auto item = std::make_shared<Item>();
    item->block = next_block;
    item->layer = next_layer;
    // Where the client is behind, what is under way is sent first; then it comes inline.
    if (window_ && !WholeBlocks() && !PlaceLocked(*item) && !items_.empty()) return;
    next_.pop();
    next_.emplace(next_layer + 1, next_block);
    item->window_bytes = bytes;
    item->reservation = *std::move(reservation);
    window_bytes_ += bytes;
    items_.push_back(item);
    StartLocked(item);
  }
}

void GetStream::StartLocked(const ItemPtr& item) {
  const Source source = sources_[item->block];
  item->waiting = source == Source::kComing;
  if (item->waiting) return;
  if (source == Source::kDisk) {
    const int64_t turn = ReadPool::TurnOf(engine_.clock().MonotonicMs(), item->window_bytes);
    if (!engine_.read_pool().Submit(turn,
                                    [self = shared_from_this(), item] { self->Read(item); })) {
      FinishLocked(DiskTooBusy());
    }
    return;
  }
  item->stored.in_memory = in_memory_[item->block];
  SubmitDecodeLocked(item);
}

void GetStream::SubmitDecodeLocked(const ItemPtr& item) {
  if (!engine_.codec_pool().Submit(CodecPool::Kind::kDecode,
                                   [self = shared_from_this(), item] { self->Decode(item); })) {
    FinishLocked(TooBusy());
  }
}

void GetStream::Read(const ItemPtr& item) {
  const ReadBlock* block;
  std::optional<uint32_t> layer;
  {
    MutexLock lock(mutex_);
    if (finished_) return;
    block = plan_.blocks[item->block].get();
    if (!WholeBlocks()) layer = item->layer;
  }
  auto read = ReadStored(engine_, *block, layer);
  MutexLock lock(mutex_);
  if (finished_) return;
  if (!read.ok()) {
    FailLocked(*item, read.status());
    return;
  }
  item->stored = *std::move(read);
  SubmitDecodeLocked(item);
}

void GetStream::FailLocked(Item& item, absl::Status status) {
  item.status = std::move(status);
  item.ready = true;
  PumpLocked();
}

void GetStream::Decode(const ItemPtr& item) {
  const ReadBlock* block;
  const GetWindow* window;
  {
    MutexLock lock(mutex_);
    if (finished_) return;
    block = plan_.blocks[item->block].get();
    window = window_.get();
    if (dead_[item->block]) {
      FailLocked(*item, absl::DataLossError("failed in an earlier layer"));
      return;
    }
    if (plan_.target) ++placing_;
  }
  absl::Status status;
  std::deque<v1::GetPart> parts;
  if (request_.has_target()) {
    status = PlaceBlock(engine_, *block, item->stored);
  } else if (request_.encoding() == v1::ENCODING_FRAME) {
    status = CheckStoredFrame(engine_, *block, item->stored);
  } else if (!item->placed.empty()) {
    std::vector<MutableByteSpan> out;
    for (const v1::GetPart& part : item->placed) {
      out.emplace_back(window->at(part.window_position()), part.window_bytes());
    }
    status = DecodeLayer(engine_, *block, item->layer, item->stored, out);
  } else {
    auto decoded = ReadLayer(engine_, *block, item->layer, item->stored);
    status = decoded.status();
    if (decoded.ok()) {
      parts.assign(std::make_move_iterator(decoded->begin()),
                   std::make_move_iterator(decoded->end()));
    }
  }
  MutexLock lock(mutex_);
  if (plan_.target) PlacedLocked();
  item->parts = std::move(parts);
  if (!plan_.frames) item->stored = {};
  item->status = status;
  item->ready = true;
  PumpLocked();
}

bool GetStream::PlaceLocked(Item& item) {
  const ReadBlock& block = *plan_.blocks[item.block];
  const std::vector<PlaneSpec>& planes = block.layout->layers[item.layer].planes;
  std::vector<uint64_t> sizes;
  for (const PlaneSpec& plane : planes) {
    sizes.push_back(plane.token_bytes() * block.metadata.tokens);
  }
  const auto places = window_->Take(sizes);
  if (!places) return false;
  uint64_t offset = block.layer_offsets[item.layer];
  for (uint32_t p = 0; p < sizes.size(); ++p) {
    v1::GetPart& part = item.placed.emplace_back();
    part.set_index(block.index);
    part.set_layer(item.layer);
    part.set_plane(p);
    part.set_offset(offset);
    part.set_window_position((*places)[p]);
    part.set_window_bytes(sizes[p]);
    offset += sizes[p];
  }
  return true;
}

bool GetStream::TakePlacedLocked() {
  const auto takes = [this](const Item& item) LKV_NO_ANALYSIS {
    return item.ready && item.status.ok() && !dead_[item.block] && !item.placed.empty();
  };
  if (!takes(*items_.front())) return false;
  v1::WindowParts* const out = response_.mutable_window_parts();
  while (!items_.empty() && takes(*items_.front()) &&
         static_cast<size_t>(out->parts_size()) < kMaxWindowParts) {
    for (v1::GetPart& part : items_.front()->placed) *out->add_parts() = std::move(part);
    PopFrontLocked();
  }
  message_ = ToByteBuffer(response_);
  return true;
}

void GetStream::PopFrontLocked() {
  window_bytes_ -= items_.front()->window_bytes;
  items_.pop_front();
}

void GetStream::SetInlineLocked(v1::GetPart part) {
  // The message shares the bytes instead of copying them.
  const std::unique_ptr<std::string> data(part.release_data());
  auto held = std::make_shared<const std::string>(std::move(*data));
  message_ = WriteGetPart(part, OwningSlice(AsBytes(*held), held));
}

bool GetStream::NextPartLocked(Item& item) {
  const ReadBlock& block = *plan_.blocks[item.block];
  if (plan_.frames) {
    const ByteSpan frame = item.stored.frame();
    if (item.frame_offset >= frame.size()) return false;
    v1::GetPart part = FramePart(block.index, frame, item.frame_offset);
    item.frame_offset += part.data().size();
    SetInlineLocked(std::move(part));
    return true;
  }
  if (plan_.target) {
    if (std::exchange(item.told, true)) return false;
    response_.mutable_placed()->set_index(block.index);
    message_ = ToByteBuffer(response_);
    return true;
  }
  if (item.parts.empty()) return false;
  SetInlineLocked(std::move(item.parts.front()));
  item.parts.pop_front();
  return true;
}

bool GetStream::NextMessageLocked() {
  response_.Clear();
  if (opens_sent_ < plan_.blocks.size()) {
    FillBlockOpen(*plan_.blocks[opens_sent_++], response_.mutable_open());
    message_ = ToByteBuffer(response_);
    return true;
  }
  while (!items_.empty() && items_.front()->ready) {
    if (TakePlacedLocked()) return true;
    Item& item = *items_.front();
    if (item.status.ok() && !dead_[item.block] && NextPartLocked(item)) return true;
    const bool report = !item.status.ok() && !dead_[item.block];
    const absl::Status why = item.status;
    const uint32_t index = item.block;
    PopFrontLocked();
    if (!report) continue;
    dead_[index] = true;
    ++engine_.metrics().misses;
    v1::BlockOpen* failed = response_.mutable_failed();
    failed->set_index(index);
    failed->mutable_block()->set_content_hash(DigestToBytes(plan_.blocks[index]->content_hash));
    if (v1::ErrorDetail detail = DetailOf(why); detail.reason() == v1::REASON_GPU) {
      *failed->mutable_miss() = std::move(detail);
    } else if (absl::IsUnavailable(why)) {
      failed->mutable_miss()->set_reason(v1::REASON_DISK);
      failed->mutable_miss()->set_message(absl::StrCat(
          std::string(why.message()), "; drop what was sent of this block and ask again later"));
    } else {
      failed->mutable_miss()->set_reason(v1::REASON_CORRUPT);
      failed->mutable_miss()->set_message(
          "the stored bytes were damaged and were dropped; drop what was sent of this block");
    }
    message_ = ToByteBuffer(response_);
    return true;
  }
  return false;
}

void GetStream::PumpLocked() {
  if (writing_ || finished_ || !prepared_) return;
  if (NextMessageLocked()) {
    writing_ = true;
    write_start_ms_ = engine_.clock().MonotonicMs();
    StartWrite(&message_);
    return;
  }
  ScheduleLocked();
  if (!finished_ && items_.empty() && awaited_ == 0 && starved_since_ms_ == 0 && !AdvanceLocked()) {
    FinishLocked(absl::OkStatus());
  }
}

void GetStream::OnWriteDone(bool ok) {
  MutexLock lock(mutex_);
  writing_ = false;
  if (!ok || finished_) return;  // the end of a broken stream comes through OnCancel
  PumpLocked();
  if (!finished_) ScheduleLocked();
}

void GetStream::FinishLocked(const absl::Status& status) {
  if (finished_) return;
  finished_ = true;
  end_ = status;
  write_start_ms_ = engine_.clock().MonotonicMs();
  items_.clear();
  window_bytes_ = 0;
  if (placing_ == 0) Finish(ToGrpcStatus(end_));
}

void GetStream::PlacedLocked() {
  --placing_;
  if (finished_ && placing_ == 0) Finish(ToGrpcStatus(end_));
}

void GetStream::OnCancel() {
  MutexLock lock(mutex_);
  FinishLocked(absl::CancelledError("the stream was cancelled"));
}

void GetStream::OnTick() {
  MutexLock lock(mutex_);
  if (done_) return;
  const int64_t now_ms = engine_.clock().MonotonicMs();
  if ((writing_ || finished_) &&
      now_ms - write_start_ms_ > engine_.config().reader_stall_timeout_ms) {
    context_->TryCancel();  // the client stopped reading; its references hold memory
    return;
  }
  if (finished_ || !prepared_ || starved_since_ms_ == 0) return;
  ScheduleLocked();
  PumpLocked();
}

void GetStream::OnDone() {
  --engine_.metrics().open_streams;
  std::shared_ptr<GetStream> self;
  MutexLock lock(mutex_);
  done_ = true;
  self = std::move(self_);
}

}  // namespace latticekv
