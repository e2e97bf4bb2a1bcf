// The GPU of core/codec/gpu, with CUDA.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/clock.h"
#include "core/base/status_macros.h"
#include "core/codec/cuda/arena_layout.h"
#include "core/codec/cuda/cuda_decoder.h"
#include "core/codec/cuda/cuda_driver.h"
#include "core/codec/cuda/cuda_encoder.h"
#include "core/codec/cuda/owned_memory.h"
#include "core/codec/cuda/sm_budget.h"
#include "core/codec/gpu/gpu_device.h"

namespace latticekv {
namespace {

// Of the ring's size, page-locked memory of each lane for the plans' tasks and results.
constexpr size_t kLanePinnedShare = 8;
// Looks at a stream in a row, and the pause between looks after that.
constexpr int kEagerLooks = 200;
constexpr std::chrono::microseconds kPause{20};

// Set when the device once did not answer. From then on nothing is freed or unmapped, which would
// wait for it: the process's end does that.
using HungFlag = std::shared_ptr<std::atomic<bool>>;

struct LaneSettings {
  int device = 0;
  size_t device_bytes = 0;
  size_t pinned_bytes = 0;
  int64_t timeout_ms = 0;
  HungFlag hung;
};

absl::Status TooLarge(size_t device_bytes, size_t pinned_bytes) {
  return absl::ResourceExhaustedError(absl::StrCat("the batch needs ", device_bytes,
                                                   " bytes on the device and ", pinned_bytes,
                                                   " page-locked ones, more than its lane has"));
}

// A planner and its plan, kept for batches of the layout, profile and settings they were made for.
template <typename Planner, typename Plan, typename Settings>
struct KeptPlanner {
  // Of what they are for, which may end before: another object is never taken for one of these.
  std::weak_ptr<const Layout> layout;
  std::weak_ptr<const ModelProfile> profile;
  Settings settings;
  std::optional<Planner> planner;
  Plan plan;

  bool IsFor(const std::shared_ptr<const Layout>& of_layout,
             const std::shared_ptr<const ModelProfile>& of_profile,
             const Settings& with_settings) const {
    return planner && IsSame(layout, of_layout) && IsSame(profile, of_profile) &&
           settings == with_settings;
  }

 private:
  template <typename T>
  static bool IsSame(const std::weak_ptr<T>& kept, const std::shared_ptr<T>& now) {
    return !kept.owner_before(now) && !now.owner_before(kept) && kept.lock() == now;
  }
};

// What of CudaEncodeSettings is no pointer.
struct EncoderSettings {
  PresetId preset = kDefaultPreset;
  StatsMode stats = StatsMode::kAuto;
  SeedOptions seed;
  bool operator==(const EncoderSettings&) const = default;
};
struct DecoderSettings {
  bool operator==(const DecoderSettings&) const = default;
};

class CudaLane final : public GpuLane {
 public:
  static absl::StatusOr<std::unique_ptr<GpuLane>> Make(const LaneSettings& settings,
                                                       const SmBudget& budget) {
    auto lane = std::unique_ptr<CudaLane>(new CudaLane(settings, budget));
    LKV_RETURN_IF_ERROR(CudaStatus(cudaSetDevice(settings.device), "no device"));
    LKV_ASSIGN_OR_RETURN(lane->stream_, budget.MakeStream());
    LKV_ASSIGN_OR_RETURN(lane->device_, DeviceMemory::Make(settings.device_bytes));
    LKV_ASSIGN_OR_RETURN(lane->pinned_, PinnedMemory::Make(settings.pinned_bytes));
    return lane;
  }

  ~CudaLane() override {
    if (*settings_.hung) {
      pinned_.Leak();
      device_.Leak();
      return;
    }
    cudaSetDevice(settings_.device);
    pinned_ = {};
    device_ = {};
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  absl::Status Encode(const GpuEncodeBatch& batch) override {
    return Run([&] { return EncodeNow(batch); });
  }
  absl::Status Decode(const GpuDecodeBatch& batch) override {
    return Run([&] { return DecodeNow(batch); });
  }

 private:
  CudaLane(const LaneSettings& settings, const SmBudget& budget)
      : settings_(settings), max_multiprocessors_(budget.multiprocessors()) {}

  // Leaves nothing in flight, whatever `work` came to.
  template <typename Work>
  absl::Status Run(const Work& work) {
    if (*settings_.hung) return absl::DeadlineExceededError("the device did not answer earlier");
    LKV_RETURN_IF_ERROR(CudaStatus(cudaSetDevice(settings_.device), "no device"));
    const absl::Status status = work();
    if (status.ok() || *settings_.hung) return status;
    tables_id_ = 0;
    // What is no error of the device was found out before anything was queued, or waits for it.
    const absl::Status quiet = WaitForStream();
    cudaGetLastError();
    return *settings_.hung ? quiet : status;
  }

  absl::Status WaitForStream() {
    const int64_t deadline = Clock::Real()->MonotonicMs() + settings_.timeout_ms;
    for (int looks = 0;; ++looks) {
      const cudaError_t error = cudaStreamQuery(stream_);
      if (error != cudaErrorNotReady) return CudaStatus(error, "the batch did not run to its end");
      if (looks < kEagerLooks) continue;
      if (Clock::Real()->MonotonicMs() > deadline) {
        *settings_.hung = true;
        return absl::DeadlineExceededError(
            absl::StrCat("the device did not answer within ", settings_.timeout_ms, " ms"));
      }
      std::this_thread::sleep_for(kPause);
    }
  }

  // What is left of the working memory before `staging_bytes`. The plans' tables lie at its start
  // and are still there when a batch of the same planner follows.
  absl::StatusOr<CudaArena> ArenaBefore(size_t staging_bytes, size_t device_bytes,
                                        size_t pinned_bytes) {
    if (staging_bytes + device_bytes > device_.size() || pinned_bytes > pinned_.size()) {
      return TooLarge(staging_bytes + device_bytes, pinned_bytes);
    }
    return CudaArena{device_.data(), device_.size() - staging_bytes, pinned_.data(), pinned_.size(),
                     &tables_id_};
  }

  // Where the raw bytes of a batch's jobs lie: in the jobs' own memory on the device, or staged at
  // the end of the lane's, one job before the other.
  struct Staging {
    std::vector<std::byte*> at_dev;  // [job], null for those that are not staged
    size_t bytes = 0;
  };
  // Gives `chunk`, made of the next job, its place; RESOURCE_EXHAUSTED when there is none.
  template <typename Job, typename Chunk>
  absl::Status PlaceJob(const Layout& layout, const Job& job, uint32_t first_layer,
                        uint32_t end_layer, Staging& staging, Chunk& chunk) const {
    if (job.placement) {
      chunk.planes = job.placement->planes;
      chunk.table = job.placement->table();
      staging.at_dev.push_back(nullptr);
      return absl::OkStatus();
    }
    staging.bytes += RoundUp(job.raw_bytes, kArenaAlignment);
    if (staging.bytes > device_.size()) return TooLarge(staging.bytes, 0);
    std::byte* const at_dev = device_.data() + (device_.size() - staging.bytes);
    chunk.planes = ContiguousPlanes(layout, job.tokens, first_layer, end_layer, at_dev);
    staging.at_dev.push_back(at_dev);
    return absl::OkStatus();
  }

  absl::Status PrepareEncoder(const GpuEncodeBatch& batch) {
    const EncoderSettings own{batch.preset, batch.stats, batch.seed};
    if (encoder_.IsFor(batch.layout, batch.profile, own)) return absl::OkStatus();
    const CudaEncodeSettings settings{batch.preset, batch.stats, batch.profile.get(), batch.seed};
    encoder_ = {};
    LKV_ASSIGN_OR_RETURN(encoder_.planner, CudaEncodePlanner::Make(*batch.layout, settings));
    encoder_.layout = batch.layout;
    encoder_.profile = batch.profile;
    encoder_.settings = own;
    return absl::OkStatus();
  }
  absl::Status PrepareDecoder(const GpuDecodeBatch& batch) {
    if (decoder_.IsFor(batch.layout, batch.profile, {})) return absl::OkStatus();
    decoder_ = {};
    LKV_ASSIGN_OR_RETURN(decoder_.planner,
                         CudaDecodePlanner::Make(*batch.layout, batch.profile.get()));
    decoder_.layout = batch.layout;
    decoder_.profile = batch.profile;
    return absl::OkStatus();
  }

  absl::Status EncodeNow(const GpuEncodeBatch& batch) {
    const Layout& layout = *batch.layout;
    const auto layers = static_cast<uint32_t>(layout.layers.size());
    Staging staging;
    std::vector<CudaEncodeChunk> chunks;
    for (const GpuEncodeJob* job : batch.jobs) {
      CudaEncodeChunk& chunk = chunks.emplace_back();
      chunk.tokens = job->tokens;
      chunk.start_position = job->start_position;
      chunk.exact_tokens = job->exact_tokens;
      chunk.keep = job->keep;
      LKV_RETURN_IF_ERROR(PlaceJob(layout, *job, 0, layers, staging, chunk));
    }
    LKV_RETURN_IF_ERROR(PrepareEncoder(batch));
    LKV_RETURN_IF_ERROR(encoder_.planner->Plan(chunks, encoder_.plan));
    const CudaEncodePlan& plan = encoder_.plan;
    LKV_ASSIGN_OR_RETURN(const CudaArena arena,
                         ArenaBefore(staging.bytes, plan.device_bytes(), plan.pinned_bytes()));
    for (size_t i = 0; i < batch.jobs.size(); ++i) {
      const GpuEncodeJob& job = *batch.jobs[i];
      if (job.placement) continue;
      LKV_RETURN_IF_ERROR(
          CudaStatus(cudaMemcpyAsync(staging.at_dev[i], job.pinned.data(), job.raw_bytes,
                                     cudaMemcpyHostToDevice, stream_),
                     "upload of a chunk"));
    }
    LKV_RETURN_IF_ERROR(plan.EncodeAsync(arena, stream_, max_multiprocessors_));
    LKV_RETURN_IF_ERROR(WaitForStream());
    if (CudaEncodePlan::CodedByHost(batch.preset)) return LeaveToCpus(batch, plan, arena);
    LKV_ASSIGN_OR_RETURN(const CudaEncodedBatch encoded, plan.Collect(arena));
    for (size_t i = 0; i < batch.jobs.size(); ++i) {
      GpuEncodeJob& job = *batch.jobs[i];
      job.frame_bytes = encoded.frame_bytes(i);
      if (job.frame_bytes > job.pinned.size()) {
        job.status = TooLarge(0, job.frame_bytes);
        continue;
      }
      job.status = absl::OkStatus();
      LKV_RETURN_IF_ERROR(
          encoded.DownloadAsync(arena, i, job.pinned.first(job.frame_bytes), stream_));
    }
    return WaitForStream();
  }

  static absl::Status LeaveToCpus(const GpuEncodeBatch& batch, const CudaEncodePlan& plan,
                                  const CudaArena& arena) {
    for (size_t i = 0; i < batch.jobs.size(); ++i) {
      LKV_ASSIGN_OR_RETURN(CudaHostChunk chunk, plan.CollectForHost(arena, i));
      batch.jobs[i]->finish = [shared = std::make_shared<const CudaHostChunk>(std::move(chunk))](
                                  const LayerRunner* runner) { return shared->Encode(runner); };
      batch.jobs[i]->status = absl::OkStatus();
    }
    return absl::OkStatus();
  }

  absl::Status DecodeNow(const GpuDecodeBatch& batch) {
    const Layout& layout = *batch.layout;
    Staging staging;
    std::vector<CudaDecodeChunk> chunks;
    for (const GpuDecodeJob* job : batch.jobs) {
      CudaDecodeChunk& chunk = chunks.emplace_back();
      chunk.frame = job->frame;
      chunk.first_layer = job->first_layer;
      chunk.layers = job->layers;
      chunk.seed = job->seed.get();
      LKV_RETURN_IF_ERROR(
          PlaceJob(layout, *job, job->first_layer, job->first_layer + job->layers, staging, chunk));
    }
    LKV_RETURN_IF_ERROR(PrepareDecoder(batch));
    LKV_RETURN_IF_ERROR(decoder_.planner->Plan(chunks, decoder_.plan));
    const CudaDecodePlan& plan = decoder_.plan;
    LKV_ASSIGN_OR_RETURN(const CudaArena arena,
                         ArenaBefore(staging.bytes, plan.device_bytes(), plan.pinned_bytes()));
    LKV_RETURN_IF_ERROR(plan.DecodeAsync(arena, stream_, max_multiprocessors_));
    for (size_t i = 0; i < batch.jobs.size(); ++i) {
      const GpuDecodeJob& job = *batch.jobs[i];
      if (job.placement || job.pinned.empty()) continue;
      LKV_RETURN_IF_ERROR(
          CudaStatus(cudaMemcpyAsync(job.pinned.data(), staging.at_dev[i], job.pinned.size(),
                                     cudaMemcpyDeviceToHost, stream_),
                     "download of a chunk"));
    }
    LKV_RETURN_IF_ERROR(WaitForStream());
    for (size_t i = 0; i < batch.jobs.size(); ++i) {
      batch.jobs[i]->status = plan.ChunkResult(arena, i);
    }
    return absl::OkStatus();
  }

  const LaneSettings settings_;
  const uint32_t max_multiprocessors_;
  cudaStream_t stream_ = nullptr;
  DeviceMemory device_;
  PinnedMemory pinned_;
  uint64_t tables_id_ = 0;  // whose tables `device_` begins with
  KeptPlanner<CudaEncodePlanner, CudaEncodePlan, EncoderSettings> encoder_;
  KeptPlanner<CudaDecodePlanner, CudaDecodePlan, DecoderSettings> decoder_;
};

// Another process's memory. The driver keeps it for as long as it is mapped, whatever becomes of
// that process.
class CudaRegion final : public GpuRegion {
 public:
  CudaRegion(int device, HungFlag hung, void* base, const GpuMemoryHandle& handle)
      : device_(device),
        hung_(std::move(hung)),
        base_(base),
        offset_(handle.offset),
        bytes_(handle.bytes) {}
  ~CudaRegion() override {
    if (*hung_) return;
    cudaSetDevice(device_);
    cudaIpcCloseMemHandle(base_);
  }
  std::byte* data_dev() const override { return static_cast<std::byte*>(base_) + offset_; }
  size_t bytes() const override { return bytes_; }

 private:
  const int device_;
  const HungFlag hung_;
  void* const base_;
  const size_t offset_, bytes_;
};

// Bytes of the allocation from `base` on.
absl::StatusOr<size_t> AllocationBytes(void* base) {
  LKV_ASSIGN_OR_RETURN(const auto range,
                       DriverFunction<decltype(&cuMemGetAddressRange)>("cuMemGetAddressRange"));
  CUdeviceptr begin = 0;
  size_t bytes = 0;
  LKV_RETURN_IF_ERROR(DriverStatus(range(&begin, &bytes, reinterpret_cast<CUdeviceptr>(base)),
                                   "cannot ask for the size of the memory"));
  return bytes - (reinterpret_cast<CUdeviceptr>(base) - begin);
}

absl::StatusOr<std::shared_ptr<const GpuRegion>> MapRegion(int device, const std::string& uuid,
                                                           const HungFlag& hung,
                                                           const GpuMemoryHandle& handle) {
  if (*hung) return absl::UnavailableError("the device did not answer earlier");
  if (handle.device_uuid != uuid) {
    return absl::FailedPreconditionError(
        "the memory is on another GPU than the daemon's; start the daemon with --gpu of that one");
  }
  cudaIpcMemHandle_t ipc{};
  if (handle.ipc_handle.size() != sizeof(ipc)) {
    return absl::InvalidArgumentError(absl::StrCat("ipc_handle has ", handle.ipc_handle.size(),
                                                   " bytes; CUDA's have ", sizeof(ipc)));
  }
  std::memcpy(&ipc, handle.ipc_handle.data(), sizeof(ipc));
  LKV_RETURN_IF_ERROR(CudaStatus(cudaSetDevice(device), "no device"));
  void* base = nullptr;
  if (const cudaError_t error = cudaIpcOpenMemHandle(&base, ipc, cudaIpcMemLazyEnablePeerAccess);
      error != cudaSuccess) {
    cudaGetLastError();
    return absl::InvalidArgumentError(
        absl::StrCat("the memory handle cannot be opened: ", cudaGetErrorString(error),
                     "; is it of a live process and of memory from cudaMalloc?"));
  }
  auto region = std::make_shared<CudaRegion>(device, hung, base, handle);
  LKV_ASSIGN_OR_RETURN(const size_t bytes, AllocationBytes(base));
  if (handle.offset > bytes || handle.bytes > bytes - handle.offset) {
    return absl::InvalidArgumentError(absl::StrCat("the memory has ", bytes, " bytes, and ",
                                                   handle.bytes, " from byte ", handle.offset,
                                                   " on are not all within"));
  }
  return region;
}

class CudaDevice final : public GpuDevice {
 public:
  CudaDevice(const GpuOptions& options, SmBudget budget, const cudaDeviceProp& properties)
      : options_(options),
        budget_(std::move(budget)),
        name_(properties.name),
        uuid_(properties.uuid.bytes, sizeof(properties.uuid.bytes)) {}
  ~CudaDevice() override {
    if (ring_ != nullptr && !*hung_) cudaFreeHost(ring_);
  }

  absl::Status AllocateRing() {
    return CudaStatus(cudaHostAlloc(&ring_, options_.ring_bytes, cudaHostAllocPortable),
                      "no page-locked memory");
  }
  std::string Description() const override {
    return absl::StrCat(name_, ", ", budget_.multiprocessors(), " multiprocessors, ",
                        options_.memory_bytes, " bytes, ", options_.streams, " streams");
  }
  MutableByteSpan ring() override { return {static_cast<std::byte*>(ring_), options_.ring_bytes}; }
  absl::StatusOr<std::unique_ptr<GpuLane>> MakeLane() override {
    LaneSettings settings;
    settings.device = options_.device;
    settings.device_bytes =
        options_.memory_bytes / options_.streams / kArenaAlignment * kArenaAlignment;
    settings.pinned_bytes = options_.ring_bytes / kLanePinnedShare;
    settings.timeout_ms = options_.timeout_ms;
    settings.hung = hung_;
    return CudaLane::Make(settings, budget_);
  }
  absl::StatusOr<std::shared_ptr<const GpuRegion>> OpenRegion(
      const GpuMemoryHandle& handle) override {
    return MapRegion(options_.device, uuid_, hung_, handle);
  }

 private:
  const GpuOptions options_;
  const SmBudget budget_;
  const std::string name_, uuid_;
  const HungFlag hung_ = std::make_shared<std::atomic<bool>>(false);
  void* ring_ = nullptr;
};

}  // namespace

absl::StatusOr<std::unique_ptr<GpuDevice>> OpenCudaDevice(const GpuOptions& options) {
  int count = 0;
  LKV_RETURN_IF_ERROR(CudaStatus(cudaGetDeviceCount(&count), "no device"));
  if (options.device >= count) {
    return absl::FailedPreconditionError(
        absl::StrCat("there is no CUDA device ", options.device, "; this host has ", count));
  }
  LKV_RETURN_IF_ERROR(CudaStatus(cudaSetDevice(options.device), "no device"));
  size_t free_bytes = 0, all_bytes = 0;
  LKV_RETURN_IF_ERROR(CudaStatus(cudaMemGetInfo(&free_bytes, &all_bytes), "cannot ask the device"));
  if (free_bytes < options.memory_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat("device ", options.device, " has ", free_bytes,
                                                     " bytes free and ", options.memory_bytes,
                                                     " are asked for; lower --gpu_memory_bytes"));
  }
  cudaDeviceProp properties{};
  LKV_RETURN_IF_ERROR(
      CudaStatus(cudaGetDeviceProperties(&properties, options.device), "cannot ask the device"));
  LKV_ASSIGN_OR_RETURN(SmBudget budget, SmBudget::Make(options.device, options.sm_percent));
  auto device = std::make_unique<CudaDevice>(options, std::move(budget), properties);
  LKV_RETURN_IF_ERROR(device->AllocateRing());
  return device;
}

}  // namespace latticekv
