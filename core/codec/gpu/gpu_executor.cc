#include "core/codec/gpu/gpu_executor.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/clock.h"
#include "core/base/status_macros.h"
#include "core/base/thread_time.h"
#include "core/codec/frame_format.h"
#include "core/codec/seed_codec.h"

namespace latticekv {
namespace {

int64_t NowMs() { return Clock::Real()->MonotonicMs(); }

// One of the batch's jobs, not the device, is why nothing ran.
bool IsRefusal(const absl::Status& status) {
  return absl::IsResourceExhausted(status) || absl::IsUnimplemented(status) ||
         absl::IsInvalidArgument(status) || absl::IsFailedPrecondition(status) ||
         absl::IsDataLoss(status);
}

GpuFallback FallbackOf(const absl::Status& refusal) {
  if (absl::IsResourceExhausted(refusal)) return GpuFallback::kMemoryShort;
  if (absl::IsUnimplemented(refusal)) return GpuFallback::kUnsupported;
  return GpuFallback::kRejected;
}

// For those whom no CPU can help.
absl::Status ErrorOf(GpuFallback why) {
  switch (why) {
    case GpuFallback::kMemoryShort:
      return absl::ResourceExhaustedError(
          "the GPU's memory is too short for the chunk; raise --gpu_memory_bytes or go by the "
          "host");
    case GpuFallback::kUnsupported:
    case GpuFallback::kSmall:
      return absl::UnimplementedError("the GPU does not code such chunks; go by the host");
    case GpuFallback::kRejected:
      return absl::DataLossError("the GPU refused the chunk");
    default:
      return absl::UnavailableError(absl::StrCat("the GPU did not do it (",
                                                 std::string(GpuFallbackName(why)),
                                                 "); try again later or go by the host"));
  }
}

size_t RawBytes(const Layout& layout, uint32_t tokens, uint32_t first_layer, uint32_t layers) {
  size_t bytes = 0;
  for (uint32_t l = first_layer; l < first_layer + layers; ++l) {
    bytes += layout.layers[l].token_bytes() * tokens;
  }
  return bytes;
}

}  // namespace

std::string_view GpuFallbackName(GpuFallback why) {
  constexpr std::string_view kNames[kGpuFallbacks] = {"off",          "small",        "unsupported",
                                                      "queue full",   "memory short", "rejected",
                                                      "device error", "timeout"};
  return kNames[static_cast<size_t>(why)];
}

// Shared by the thread that asks and the lane that runs it, so that either may leave first. The
// lane touches nothing of the asking thread's: only what is in here and in the ring.
struct GpuExecutor::Job {
  enum class State { kWaiting, kRunning, kDone };
  bool is_encode = false;
  std::shared_ptr<const Layout> layout;
  std::shared_ptr<const ModelProfile> profile;
  std::shared_ptr<const void> frame_owner;
  PresetId preset = kDefaultPreset;
  StatsMode stats = StatsMode::kAuto;
  SeedOptions seed;
  size_t raw_bytes = 0;
  size_t room_at = 0;
  GpuEncodeJob encode;
  GpuDecodeJob decode;
  // Guarded by the executor's mutex.
  State state = State::kWaiting;
  bool abandoned = false;  // its thread left: the lane gives the room back
  bool room_lost = false;  // the device may still write there
  std::optional<GpuFallback> fallback;
  CondVar done;
};

GpuExecutor::GpuExecutor(std::unique_ptr<GpuDevice> device, const GpuOptions& options,
                         OffListener off_listener)
    : options_(options),
      off_listener_(std::move(off_listener)),
      device_(std::move(device)),
      ring_memory_(device_->ring()),
      ring_(ring_memory_.size()) {}

absl::StatusOr<std::unique_ptr<GpuExecutor>> GpuExecutor::Start(std::unique_ptr<GpuDevice> device,
                                                                const GpuOptions& options,
                                                                OffListener off_listener) {
  auto executor = std::unique_ptr<GpuExecutor>(
      new GpuExecutor(std::move(device), options, std::move(off_listener)));
  for (int i = 0; i < options.streams; ++i) {
    LKV_ASSIGN_OR_RETURN(executor->lanes_.emplace_back(), executor->device_->MakeLane());
  }
  LKV_RETURN_IF_ERROR(executor->SelfTest());
  for (const auto& lane : executor->lanes_) {
    executor->threads_.emplace_back([e = executor.get(), l = lane.get()] { e->RunLane(*l); });
  }
  return executor;
}

GpuExecutor::~GpuExecutor() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
  }
  wake_.SignalAll();
  for (std::thread& thread : threads_) thread.join();
  lanes_.clear();
}

absl::Status GpuExecutor::SelfTest() {
  constexpr uint32_t kTokens = 16;
  const Layout layout =
      MakeUniformLayout("self-test", 1, 1, 64, DType::kF16, {RopeStyle::kNeox, 64, 10000.0, {}});
  ByteVector raw(layout.token_bytes() * kTokens);
  for (size_t i = 0; i < raw.size() / 2; ++i) {
    // Halves around 1, which differ.
    StoreLe(raw.data() + 2 * i, static_cast<uint16_t>(0x3C00 + (i * 2654435761u >> 7) % 900));
  }
  EncodeOptions options;
  LKV_ASSIGN_OR_RETURN(const ByteVector expected,
                       EncodeFrame(layout, kTokens, RawChunkViews(layout, kTokens, raw), options));
  GpuEncodeJob job;
  job.tokens = kTokens;
  job.raw_bytes = raw.size();
  job.pinned = ring_memory_.first(
      std::min(ring_memory_.size(), FrameBytesBound(layout.layers.size(), raw.size())));
  if (job.pinned.size() < raw.size()) return absl::ResourceExhaustedError("the ring is too small");
  std::memcpy(job.pinned.data(), raw.data(), raw.size());
  GpuEncodeBatch batch;
  batch.layout = std::make_shared<const Layout>(layout);
  batch.preset = options.preset;
  batch.stats = options.stats;
  batch.jobs = {&job};
  LKV_RETURN_IF_ERROR(lanes_.front()->Encode(batch));
  LKV_RETURN_IF_ERROR(job.status);
  const ByteSpan frame = ByteSpan(job.pinned).first(job.frame_bytes);
  if (!std::equal(frame.begin(), frame.end(), expected.begin(), expected.end())) {
    return absl::InternalError("the device encodes a chunk into other bytes than a CPU");
  }
  return absl::OkStatus();
}

std::optional<GpuFallback> GpuExecutor::Count(GpuFallback why) {
  ++fallbacks_[static_cast<size_t>(why)];
  return why;
}

std::optional<GpuFallback> GpuExecutor::TakeRoom(const JobPtr& job, size_t bytes, int64_t wait_ms) {
  const int64_t deadline = NowMs() + wait_ms;
  MutexLock lock(mutex_);
  while (true) {
    if (!on_) return GpuFallback::kOff;
    if (const auto at = ring_.Take(bytes)) {
      job->room_at = *at;
      return std::nullopt;
    }
    const int64_t left = deadline - NowMs();
    if (left <= 0 || bytes > ring_.bytes()) return GpuFallback::kQueueFull;
    room_.WaitFor(mutex_, left);
  }
}

MutableByteSpan GpuExecutor::RoomOf(const Job& job, size_t bytes) {
  return ring_memory_.subspan(job.room_at, bytes);
}

void GpuExecutor::GiveRoomBack(const JobPtr& job) {
  {
    MutexLock lock(mutex_);
    ring_.GiveBack(job->room_at);
  }
  room_.SignalAll();
}

std::optional<GpuFallback> GpuExecutor::Wait(const JobPtr& job) {
  const int64_t deadline = NowMs() + options_.timeout_ms;
  bool hung = false;
  {
    MutexLock lock(mutex_);
    if (on_) {
      (job->is_encode ? encodes_ : decodes_).push_back(job);
    } else {
      FinishLocked(job, GpuFallback::kOff);
    }
    wake_.Signal();
    while (job->state != Job::State::kDone) {
      const int64_t left = deadline - NowMs();
      if (left <= 0) break;
      job->done.WaitFor(mutex_, left);
    }
    if (job->state == Job::State::kWaiting) {
      std::erase(job->is_encode ? encodes_ : decodes_, job);
      FinishLocked(job, GpuFallback::kTimeout);
    } else if (job->state == Job::State::kRunning) {
      job->abandoned = true;
      hung = true;
    }
    if (!hung && job->fallback && !job->room_lost) ring_.GiveBack(job->room_at);
  }
  if (!hung) {
    if (job->fallback) room_.SignalAll();
    return job->fallback;
  }
  ++errors_;
  TurnOff(absl::DeadlineExceededError(
      absl::StrCat("the device did not answer within ", options_.timeout_ms, " ms")));
  return GpuFallback::kTimeout;
}

std::optional<ByteVector> GpuExecutor::Encode(const GpuEncodeRequest& request) {
  ByteVector frame;
  if (RunEncode(request, &frame)) return std::nullopt;
  return frame;
}

bool GpuExecutor::Decode(const GpuDecodeRequest& request) {
  return !RunDecode(request).has_value();
}

absl::StatusOr<ByteVector> GpuExecutor::EncodeFrom(const GpuEncodeRequest& request) {
  ByteVector frame;
  if (const auto why = RunEncode(request, &frame)) return ErrorOf(*why);
  return frame;
}

absl::Status GpuExecutor::DecodeTo(const GpuDecodeRequest& request) {
  const auto why = RunDecode(request);
  return why ? ErrorOf(*why) : absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const GpuRegion>> GpuExecutor::OpenRegion(
    const GpuMemoryHandle& handle) {
  {
    MutexLock lock(mutex_);
    if (!on_) return ErrorOf(GpuFallback::kOff);
  }
  return device_->OpenRegion(handle);
}

std::optional<GpuFallback> GpuExecutor::RunEncode(const GpuEncodeRequest& request,
                                                  ByteVector* frame) {
  const EncodeOptions& options = request.options;
  const bool on_device = request.placement != nullptr;
  // Exact frames are copies that zstd makes smaller, on a CPU either way.
  if ((options.preset == PresetId::kExact && !on_device) || options.mass.data != nullptr) {
    return Count(GpuFallback::kUnsupported);
  }
  const size_t raw_bytes = request.layout->token_bytes() * request.tokens;
  if (raw_bytes < options_.min_job_bytes && !on_device) return Count(GpuFallback::kSmall);
  auto job = std::make_shared<Job>();
  job->is_encode = true;
  job->layout = request.layout;
  job->profile = request.profile;
  job->preset = options.preset;
  job->stats = options.stats;
  job->seed = options.seed;
  job->raw_bytes = raw_bytes;
  job->encode.tokens = request.tokens;
  job->encode.start_position = options.start_position;
  job->encode.exact_tokens = options.exact_tokens;
  job->encode.keep = options.keep;
  job->encode.raw_bytes = raw_bytes;
  job->encode.placement = request.placement;
  const size_t bytes = FrameBytesBound(request.layout->layers.size(), raw_bytes);
  const int64_t wait_ms = on_device ? options_.timeout_ms : options_.queue_wait_ms;
  if (const auto why = TakeRoom(job, bytes, wait_ms)) return Count(*why);
  job->encode.pinned = RoomOf(*job, bytes);
  if (!on_device) std::memcpy(job->encode.pinned.data(), request.raw.data(), raw_bytes);
  if (const auto why = Wait(job)) return Count(*why);
  if (job->encode.finish) {
    GiveRoomBack(job);
    auto finished = job->encode.finish(options.runner);
    if (!finished.ok()) return Count(FallbackOf(finished.status()));
    *frame = *std::move(finished);
  } else {
    const std::byte* from = job->encode.pinned.data();
    frame->assign(from, from + job->encode.frame_bytes);
    GiveRoomBack(job);
  }
  ++encodes_done_;
  return std::nullopt;
}

std::optional<GpuFallback> GpuExecutor::RunDecode(const GpuDecodeRequest& request) {
  const bool on_device = request.placement != nullptr;
  if (request.preset == PresetId::kExact && !on_device) return Count(GpuFallback::kUnsupported);
  const Layout& layout = *request.layout;
  const size_t raw_bytes = RawBytes(layout, request.tokens, request.first_layer, request.layers);
  if (raw_bytes < options_.min_job_bytes && !on_device) return Count(GpuFallback::kSmall);
  auto job = std::make_shared<Job>();
  job->layout = request.layout;
  job->profile = request.profile;
  job->frame_owner = request.frame_owner;
  job->raw_bytes = raw_bytes;
  job->decode.tokens = request.tokens;
  job->decode.first_layer = request.first_layer;
  job->decode.layers = request.layers;
  job->decode.raw_bytes = raw_bytes;
  job->decode.placement = request.placement;
  if (request.preset == PresetId::kSeed) {
    // Here, since the lanes' threads are few.
    auto read = ReadSeedLayers(layout, request.frame, request.first_layer, request.layers);
    if (!read.ok()) return Count(FallbackOf(read.status()));
    job->decode.seed = std::make_shared<const SeedLayers>(*std::move(read));
  }
  // A whole frame comes up from the ring; single layers, much smaller, from where they are.
  const bool whole = request.layers == layout.layers.size();
  const size_t out_bytes = request.out.empty() ? 0 : raw_bytes;
  const size_t frame_at =
      (out_bytes + PinnedRing::kAlignment - 1) / PinnedRing::kAlignment * PinnedRing::kAlignment;
  // At least a byte: a job always has room of its own.
  const size_t bytes = std::max<size_t>(1, whole ? frame_at + request.frame.size() : out_bytes);
  const int64_t wait_ms = on_device ? options_.timeout_ms : options_.queue_wait_ms;
  if (const auto why = TakeRoom(job, bytes, wait_ms)) return Count(*why);
  const MutableByteSpan room = RoomOf(*job, bytes);
  job->decode.pinned = room.first(out_bytes);
  job->decode.frame = request.frame;
  if (whole) {
    std::memcpy(room.data() + frame_at, request.frame.data(), request.frame.size());
    job->decode.frame = room.subspan(frame_at);
  }
  if (const auto why = Wait(job)) return Count(*why);
  const std::byte* from = room.data();
  for (const MutableByteSpan& plane : request.out) {
    std::memcpy(plane.data(), from, plane.size());
    from += plane.size();
  }
  GiveRoomBack(job);
  ++decodes_done_;
  return std::nullopt;
}

void GpuExecutor::RunLane(GpuLane& lane) {
  while (true) {
    std::vector<JobPtr> batch;
    {
      MutexLock lock(mutex_);
      batch = NextBatchLocked();
      if (batch.empty()) return;
      ++busy_lanes_;
    }
    ++batches_;
    {
      const BusyTimer timer(batch.front()->is_encode ? encode_cpu_ns_ : decode_cpu_ns_);
      RunBatch(lane, batch);
    }
    MutexLock lock(mutex_);
    --busy_lanes_;
  }
}

std::vector<GpuExecutor::JobPtr> GpuExecutor::NextBatchLocked() {
  const auto waiting_bytes = [this]() LKV_NO_ANALYSIS {
    size_t bytes = 0;
    for (const auto* queue : {&encodes_, &decodes_}) {
      for (const JobPtr& job : *queue) bytes += job->raw_bytes;
    }
    return bytes;
  };
  std::vector<JobPtr> batch;
  while (batch.empty()) {
    while (!stopping_ && encodes_.empty() && decodes_.empty()) wake_.Wait(mutex_);
    if (stopping_) return batch;
    if (busy_lanes_ > 0 && waiting_bytes() < options_.batch_bytes) {
      const int64_t deadline = NowMs() + options_.batch_delay_ms;
      for (int64_t left = options_.batch_delay_ms;
           left > 0 && !stopping_ && waiting_bytes() < options_.batch_bytes;
           left = deadline - NowMs()) {
        wake_.WaitFor(mutex_, left);
      }
    }
    // Alternate while both wait, so that neither readers nor writers starve.
    auto& queue = encodes_.empty() || (decode_next_ && !decodes_.empty()) ? decodes_ : encodes_;
    decode_next_ = &queue == &encodes_;
    size_t bytes = 0;
    for (auto it = queue.begin(); it != queue.end() && bytes < options_.batch_bytes;) {
      const Job& job = **it;
      const bool fits = batch.empty() || bytes + job.raw_bytes <= options_.batch_bytes;
      const bool alike =
          batch.empty() || (job.layout == batch[0]->layout && job.profile == batch[0]->profile &&
                            job.preset == batch[0]->preset && job.stats == batch[0]->stats &&
                            job.seed == batch[0]->seed);
      if (!fits || !alike) {
        ++it;
        continue;
      }
      bytes += job.raw_bytes;
      (*it)->state = Job::State::kRunning;
      batch.push_back(std::move(*it));
      it = queue.erase(it);
    }
  }
  return batch;
}

void GpuExecutor::FinishLocked(const JobPtr& job, std::optional<GpuFallback> fallback) {
  job->state = Job::State::kDone;
  job->fallback = fallback;
  job->done.Signal();
}

void GpuExecutor::RunBatch(GpuLane& lane, std::span<const JobPtr> jobs) {
  const absl::Status status =
      jobs.front()->is_encode ? RunEncodes(lane, jobs) : RunDecodes(lane, jobs);
  if (IsRefusal(status) && jobs.size() > 1) {  // find out which one it is
    RunBatch(lane, jobs.first(jobs.size() / 2));
    RunBatch(lane, jobs.subspan(jobs.size() / 2));
    return;
  }
  if (!status.ok() && !IsRefusal(status)) NoteDeviceError(status);
  bool room = false;
  {
    MutexLock lock(mutex_);
    if (status.ok()) errors_in_a_row_ = 0;
    for (const JobPtr& job : jobs) {
      const absl::Status& own = job->is_encode ? job->encode.status : job->decode.status;
      std::optional<GpuFallback> fallback;
      if (!status.ok()) {
        fallback = IsRefusal(status) ? FallbackOf(status) : GpuFallback::kDeviceError;
      } else if (!own.ok()) {
        fallback = FallbackOf(own);
      }
      job->room_lost = absl::IsDeadlineExceeded(status);
      if (job->abandoned && !job->room_lost) {
        ring_.GiveBack(job->room_at);
        room = true;
      }
      FinishLocked(job, fallback);
    }
  }
  if (room) room_.SignalAll();
}

absl::Status GpuExecutor::RunEncodes(GpuLane& lane, std::span<const JobPtr> jobs) {
  GpuEncodeBatch batch;
  batch.layout = jobs.front()->layout;
  batch.profile = jobs.front()->profile;
  batch.preset = jobs.front()->preset;
  batch.stats = jobs.front()->stats;
  batch.seed = jobs.front()->seed;
  for (const JobPtr& job : jobs) batch.jobs.push_back(&job->encode);
  return lane.Encode(batch);
}

absl::Status GpuExecutor::RunDecodes(GpuLane& lane, std::span<const JobPtr> jobs) {
  GpuDecodeBatch batch;
  batch.layout = jobs.front()->layout;
  batch.profile = jobs.front()->profile;
  for (const JobPtr& job : jobs) batch.jobs.push_back(&job->decode);
  return lane.Decode(batch);
}

void GpuExecutor::NoteDeviceError(const absl::Status& error) {
  ++errors_;
  bool persists;
  {
    MutexLock lock(mutex_);
    persists = ++errors_in_a_row_ >= options_.max_errors || absl::IsDeadlineExceeded(error);
  }
  if (persists) TurnOff(error);
}

void GpuExecutor::TurnOff(const absl::Status& why) {
  {
    MutexLock lock(mutex_);
    if (!std::exchange(on_, false)) return;
    off_reason_ = why;
    for (auto* queue : {&encodes_, &decodes_}) {
      for (const JobPtr& job : *queue) FinishLocked(job, GpuFallback::kOff);
      queue->clear();
    }
  }
  room_.SignalAll();
  if (off_listener_) off_listener_(why);
}

GpuStats GpuExecutor::stats() const {
  GpuStats out;
  {
    MutexLock lock(mutex_);
    out.on = on_;
    out.off_reason = std::string(off_reason_.message());
    out.waiting = encodes_.size() + decodes_.size();
  }
  out.device = device_->Description();
  out.encodes = encodes_done_.load();
  out.decodes = decodes_done_.load();
  out.batches = batches_.load();
  out.errors = errors_.load();
  out.encode_cpu_ns = encode_cpu_ns_.load();
  out.decode_cpu_ns = decode_cpu_ns_.load();
  for (size_t i = 0; i < kGpuFallbacks; ++i) out.fallbacks[i] = fallbacks_[i].load();
  return out;
}

}  // namespace latticekv
