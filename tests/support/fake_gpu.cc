#include "tests/support/fake_gpu.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace latticekv::testing {
namespace {

// Between contiguous raw bytes and where a placement says.
void CopyPlaced(const Layout& layout, const GpuPlacement& placement, uint32_t tokens,
                std::byte* raw, bool to_raw) {
  for (size_t l = 0; l < layout.layers.size(); ++l) {
    for (size_t p = 0; p < layout.layers[l].planes.size(); ++p) {
      const PlaneSpec& spec = layout.layers[l].planes[p];
      const DevicePlane& plane = placement.planes[l][p];
      const size_t vector_bytes = spec.head_dim * DTypeBytes(spec.dtype);
      for (uint32_t t = 0; t < tokens; ++t) {
        const uint64_t at = placement.first_token + t;
        for (uint32_t h = 0; h < spec.heads; ++h) {
          std::byte* placed =
              plane.data_dev + placement.blocks[at / placement.block_tokens] * plane.block_stride +
              at % placement.block_tokens * plane.token_stride + h * plane.head_stride;
          std::memcpy(to_raw ? raw : placed, to_raw ? placed : raw, vector_bytes);
          raw += vector_bytes;
        }
      }
    }
  }
}

constexpr size_t kHandleBytes = 64;  // of CUDA

// A mapped FakeGpuMemory.
class FakeRegion final : public GpuRegion {
 public:
  static absl::StatusOr<std::shared_ptr<const GpuRegion>> Open(
      std::shared_ptr<FakeGpuScript> script, const GpuMemoryHandle& handle) {
    const auto none = [] { return absl::InvalidArgumentError("no handle of a fake"); };
    if (handle.ipc_handle.size() != kHandleBytes || handle.ipc_handle.back() != '\0') return none();
    const int descriptor = open(handle.ipc_handle.c_str(), O_RDWR | O_CLOEXEC);
    if (descriptor < 0) return none();
    struct stat file {};
    const bool fits = fstat(descriptor, &file) == 0 &&
                      handle.offset <= static_cast<uint64_t>(file.st_size) &&
                      handle.bytes <= static_cast<uint64_t>(file.st_size) - handle.offset;
    void* const base = fits ? mmap(nullptr, static_cast<size_t>(file.st_size),
                                   PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0)
                            : MAP_FAILED;
    close(descriptor);
    if (base == MAP_FAILED) return none();
    return std::shared_ptr<const GpuRegion>(
        new FakeRegion(std::move(script), static_cast<std::byte*>(base),
                       static_cast<size_t>(file.st_size), handle));
  }
  ~FakeRegion() override {
    munmap(base_, mapped_bytes_);
    script_->CountRegion(-1);
  }
  std::byte* data_dev() const override { return base_ + offset_; }
  size_t bytes() const override { return bytes_; }

 private:
  FakeRegion(std::shared_ptr<FakeGpuScript> script, std::byte* base, size_t mapped_bytes,
             const GpuMemoryHandle& handle)
      : script_(std::move(script)),
        base_(base),
        mapped_bytes_(mapped_bytes),
        offset_(handle.offset),
        bytes_(handle.bytes) {
    script_->CountRegion(1);
  }
  const std::shared_ptr<FakeGpuScript> script_;
  std::byte* const base_;
  const size_t mapped_bytes_;
  const size_t offset_, bytes_;
};

class FakeLane final : public GpuLane {
 public:
  explicit FakeLane(std::shared_ptr<FakeGpuScript> script) : script_(std::move(script)) {}

  absl::Status Encode(const GpuEncodeBatch& batch) override {
    size_t bytes = 0;
    for (const GpuEncodeJob* job : batch.jobs) bytes += job->raw_bytes;
    absl::Status status = script_->Begin(batch.jobs.size(), bytes);
    if (status.ok()) {
      for (GpuEncodeJob* job : batch.jobs) EncodeOne(batch, job);
    }
    script_->End();
    return status;
  }

  absl::Status Decode(const GpuDecodeBatch& batch) override {
    size_t bytes = 0;
    for (const GpuDecodeJob* job : batch.jobs) bytes += job->pinned.size();
    absl::Status status = script_->Begin(batch.jobs.size(), bytes);
    for (GpuDecodeJob* job : batch.jobs) {
      if (!status.ok()) break;
      status = DecodeOne(batch, job);
    }
    script_->End();
    return status;
  }

 private:
  void EncodeOne(const GpuEncodeBatch& batch, GpuEncodeJob* job) {
    EncodeOptions options;
    options.preset = batch.preset;
    options.stats = batch.stats;
    options.profile = batch.profile.get();
    options.seed = batch.seed;
    options.start_position = job->start_position;
    options.exact_tokens = job->exact_tokens;
    options.keep = job->keep;
    ByteVector gathered;
    ByteSpan raw = ByteSpan(job->pinned).first(job->raw_bytes);
    if (job->placement) {
      gathered.resize(job->raw_bytes);
      CopyPlaced(*batch.layout, *job->placement, job->tokens, gathered.data(), true);
      raw = gathered;
    }
    if (batch.preset == PresetId::kSeed) {  // as the real one
      job->status = absl::OkStatus();
      job->finish = [layout = batch.layout, tokens = job->tokens, options,
                     raw = ByteVector(raw.begin(), raw.end())](const LayerRunner* runner) {
        EncodeOptions all = options;
        all.runner = runner;
        return EncodeFrame(*layout, tokens, RawChunkViews(*layout, tokens, raw), all);
      };
      return;
    }
    auto frame = EncodeFrame(*batch.layout, job->tokens,
                             RawChunkViews(*batch.layout, job->tokens, raw), options);
    job->status = frame.status();
    if (!frame.ok()) return;
    if (script_->spoils()) frame->back() ^= std::byte{1};
    job->frame_bytes = frame->size();
    std::memcpy(job->pinned.data(), frame->data(), frame->size());
  }

  // As the real one: what the frame's headers and checksums tell refuses the whole batch.
  absl::Status DecodeOne(const GpuDecodeBatch& batch, GpuDecodeJob* job) {
    const Layout& layout = *batch.layout;
    auto decoder = FrameDecoder::Open(job->frame, layout, batch.profile.get());
    if (!decoder.ok()) return decoder.status();
    job->status = absl::OkStatus();
    if (job->placement) {
      ByteVector raw(layout.token_bytes() * job->tokens);
      absl::Status status = DecodeFrame(*decoder, layout, raw);
      if (status.ok()) CopyPlaced(layout, *job->placement, job->tokens, raw.data(), false);
      return status;
    }
    ByteVector scratch;
    std::byte* at = job->pinned.data();
    for (uint32_t l = job->first_layer; l < job->first_layer + job->layers; ++l) {
      size_t layer_bytes = 0;
      for (const PlaneSpec& plane : layout.layers[l].planes) {
        layer_bytes += plane.token_bytes() * job->tokens;
      }
      if (job->pinned.empty()) {
        scratch.resize(layer_bytes);
        at = scratch.data();
      }
      std::vector<MutablePlaneView> views;
      for (const PlaneSpec& plane : layout.layers[l].planes) {
        views.push_back(ContiguousPlane(plane, at));
        at += plane.token_bytes() * job->tokens;
      }
      absl::Status status = decoder->DecodeLayer(l, views);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  const std::shared_ptr<FakeGpuScript> script_;
};

class FakeGpu final : public GpuDevice {
 public:
  FakeGpu(std::shared_ptr<FakeGpuScript> script, const GpuOptions& options)
      : script_(std::move(script)),
        bytes_(options.ring_bytes),
        ring_(static_cast<std::byte*>(std::aligned_alloc(256, bytes_))) {}
  ~FakeGpu() override { std::free(ring_); }
  std::string Description() const override { return "fake"; }
  MutableByteSpan ring() override { return {ring_, bytes_}; }
  absl::StatusOr<std::unique_ptr<GpuLane>> MakeLane() override {
    return std::make_unique<FakeLane>(script_);
  }
  absl::StatusOr<std::shared_ptr<const GpuRegion>> OpenRegion(
      const GpuMemoryHandle& handle) override {
    return FakeRegion::Open(script_, handle);
  }

 private:
  const std::shared_ptr<FakeGpuScript> script_;
  const size_t bytes_;
  std::byte* const ring_;
};

}  // namespace

FakeGpuMemory::FakeGpuMemory(size_t bytes)
    : bytes_(bytes), descriptor_(memfd_create("fake-gpu", MFD_CLOEXEC)) {
  void* base = MAP_FAILED;
  if (descriptor_ >= 0 && ftruncate(descriptor_, static_cast<off_t>(bytes)) == 0) {
    base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor_, 0);
  }
  if (base == MAP_FAILED) abort();
  data_ = static_cast<std::byte*>(base);
}

FakeGpuMemory::~FakeGpuMemory() {
  munmap(data_, bytes_);
  close(descriptor_);
}

std::string FakeGpuMemory::handle() const {
  std::string out = absl::StrCat("/proc/", getpid(), "/fd/", descriptor_);
  out.resize(kHandleBytes, '\0');
  return out;
}

void FakeGpuScript::FailNext(int batches, absl::Status status) {
  MutexLock lock(mutex_);
  failures_.insert(failures_.end(), batches, status);
}

void FakeGpuScript::CountRegion(int change) {
  MutexLock lock(mutex_);
  regions_ += change;
}

int FakeGpuScript::regions() const {
  MutexLock lock(mutex_);
  return regions_;
}

void FakeGpuScript::SetCapacity(size_t raw_bytes) {
  MutexLock lock(mutex_);
  capacity_ = raw_bytes;
}

void FakeGpuScript::Close() {
  MutexLock lock(mutex_);
  closed_ = true;
}

void FakeGpuScript::Open() {
  MutexLock lock(mutex_);
  closed_ = false;
  changed_.SignalAll();
}

void FakeGpuScript::SpoilFrames() {
  MutexLock lock(mutex_);
  spoil_ = true;
}

void FakeGpuScript::WaitForBatches(size_t count) {
  MutexLock lock(mutex_);
  while (batch_sizes_.size() < count) changed_.Wait(mutex_);
}

std::vector<size_t> FakeGpuScript::batch_sizes() const {
  MutexLock lock(mutex_);
  return batch_sizes_;
}

int FakeGpuScript::most_at_once() const {
  MutexLock lock(mutex_);
  return most_at_once_;
}

bool FakeGpuScript::spoils() const {
  MutexLock lock(mutex_);
  return spoil_;
}

absl::Status FakeGpuScript::Begin(size_t jobs, size_t raw_bytes) {
  MutexLock lock(mutex_);
  batch_sizes_.push_back(jobs);
  most_at_once_ = std::max(most_at_once_, ++at_once_);
  changed_.SignalAll();
  while (closed_) changed_.Wait(mutex_);
  if (!failures_.empty()) {
    const absl::Status status = failures_.front();
    failures_.erase(failures_.begin());
    return status;
  }
  if (capacity_ > 0 && raw_bytes > capacity_) {
    return absl::ResourceExhaustedError("the fake device is small");
  }
  return absl::OkStatus();
}

void FakeGpuScript::End() {
  MutexLock lock(mutex_);
  --at_once_;
}

std::unique_ptr<GpuDevice> MakeFakeGpu(std::shared_ptr<FakeGpuScript> script,
                                       const GpuOptions& options) {
  return std::make_unique<FakeGpu>(std::move(script), options);
}

}  // namespace latticekv::testing
