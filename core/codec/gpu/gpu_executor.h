// Encodes and decodes on a GPU what concurrent threads ask for, in batches. A thread that gets no
// answer from it does the job on its CPU, with the same bytes as the result.
#ifndef LATTICEKV_CORE_CODEC_GPU_GPU_EXECUTOR_H_
#define LATTICEKV_CORE_CODEC_GPU_GPU_EXECUTOR_H_

#include <array>
#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/mutex.h"
#include "core/codec/gpu/gpu_device.h"
#include "core/codec/gpu/pinned_ring.h"

namespace latticekv {

// Why a job went to a CPU.
enum class GpuFallback : uint8_t {
  kOff,          // turned off after errors
  kSmall,        // below min_job_bytes
  kUnsupported,  // the device does not do these stages
  kQueueFull,    // no room in the ring
  kMemoryShort,  // not enough memory on the device
  kRejected,     // the input is not sound: the CPU's error is the one to report
  kDeviceError,
  kTimeout,
};
inline constexpr size_t kGpuFallbacks = 8;
std::string_view GpuFallbackName(GpuFallback why);

struct GpuStats {
  bool on = true;
  std::string off_reason;
  std::string device;
  uint64_t encodes = 0, decodes = 0;  // done by the device
  uint64_t batches = 0;
  size_t waiting = 0;   // jobs that no lane has taken yet
  uint64_t errors = 0;  // of the device
  // CPU time of the lanes' threads, which prepare batches and wait for them.
  uint64_t encode_cpu_ns = 0, decode_cpu_ns = 0;
  std::array<uint64_t, kGpuFallbacks> fallbacks{};
};

struct GpuEncodeRequest {
  std::shared_ptr<const Layout> layout;
  std::shared_ptr<const ModelProfile> profile;  // may be null; options.profile is not looked at
  uint32_t tokens = 0;
  EncodeOptions options;  // its runner helps with what the device leaves to CPUs
  ByteSpan raw;           // as RawChunkViews has it
  std::shared_ptr<const GpuPlacement> placement;  // of EncodeFrom: where the chunk is
};

struct GpuDecodeRequest {
  std::shared_ptr<const Layout> layout;
  std::shared_ptr<const ModelProfile> profile;  // may be null
  ByteSpan frame;                               // whole
  std::shared_ptr<const void> frame_owner;      // keeps `frame` where it is
  PresetId preset = kDefaultPreset;             // of the frame
  uint32_t tokens = 0;
  uint32_t first_layer = 0;
  uint32_t layers = 0;  // at least 1
  // Contiguous planes of the layers, one after the other; empty: only find out whether they decode.
  std::span<const MutableByteSpan> out;
  std::shared_ptr<const GpuPlacement> placement;  // of DecodeTo: where the layers go
};

// Thread-safe. No call may be under way when it is destroyed.
class GpuExecutor {
 public:
  // Told once, from a thread of the executor, why it does no more work from now on.
  using OffListener = std::function<void(const absl::Status&)>;

  // Makes the lanes and compares a chunk that the first of them encodes with a CPU's frame.
  static absl::StatusOr<std::unique_ptr<GpuExecutor>> Start(std::unique_ptr<GpuDevice> device,
                                                            const GpuOptions& options,
                                                            OffListener off_listener);
  ~GpuExecutor();
  GpuExecutor(const GpuExecutor&) = delete;
  GpuExecutor& operator=(const GpuExecutor&) = delete;

  // The frame, or nothing: then the caller encodes. Blocks until one of the two is known.
  std::optional<ByteVector> Encode(const GpuEncodeRequest& request);
  // False: the caller decodes. What `out` holds is then unspecified.
  bool Decode(const GpuDecodeRequest& request);

  // The same with memory on the device, which no CPU can stand in for: RESOURCE_EXHAUSTED (memory
  // of the device), UNIMPLEMENTED (stages), DATA_LOSS (the frame) or UNAVAILABLE (the device fails,
  // is off or too busy).
  absl::StatusOr<ByteVector> EncodeFrom(const GpuEncodeRequest& request);
  absl::Status DecodeTo(const GpuDecodeRequest& request);
  absl::StatusOr<std::shared_ptr<const GpuRegion>> OpenRegion(const GpuMemoryHandle& handle);

  GpuStats stats() const;

 private:
  struct Job;
  using JobPtr = std::shared_ptr<Job>;

  GpuExecutor(std::unique_ptr<GpuDevice> device, const GpuOptions& options,
              OffListener off_listener);
  absl::Status SelfTest();

  // Both count what they could not do.
  std::optional<GpuFallback> RunEncode(const GpuEncodeRequest& request, ByteVector* frame);
  std::optional<GpuFallback> RunDecode(const GpuDecodeRequest& request);
  // Takes room in the ring for the job.
  std::optional<GpuFallback> TakeRoom(const JobPtr& job, size_t bytes, int64_t wait_ms);
  MutableByteSpan RoomOf(const Job& job, size_t bytes);
  // Queues the job and waits for its end. A fallback unless the device did it, and the room is
  // given back then.
  std::optional<GpuFallback> Wait(const JobPtr& job);
  void GiveRoomBack(const JobPtr& job);

  void RunLane(GpuLane& lane);
  std::vector<JobPtr> NextBatchLocked() LKV_REQUIRES(mutex_);
  void RunBatch(GpuLane& lane, std::span<const JobPtr> jobs);
  absl::Status RunEncodes(GpuLane& lane, std::span<const JobPtr> jobs);
  absl::Status RunDecodes(GpuLane& lane, std::span<const JobPtr> jobs);
  void NoteDeviceError(const absl::Status& error);
  void TurnOff(const absl::Status& why);
  void FinishLocked(const JobPtr& job, std::optional<GpuFallback> fallback) LKV_REQUIRES(mutex_);
  std::optional<GpuFallback> Count(GpuFallback why);

  const GpuOptions options_;
  const OffListener off_listener_;
  const std::unique_ptr<GpuDevice> device_;
  const MutableByteSpan ring_memory_;
  std::vector<std::unique_ptr<GpuLane>> lanes_;

  mutable Mutex mutex_;
  CondVar wake_;  // lanes: something waits
  CondVar room_;  // callers: the ring has room
  PinnedRing ring_ LKV_GUARDED_BY(mutex_);
  std::deque<JobPtr> encodes_ LKV_GUARDED_BY(mutex_);
  std::deque<JobPtr> decodes_ LKV_GUARDED_BY(mutex_);
  bool decode_next_ LKV_GUARDED_BY(mutex_) = true;
  int busy_lanes_ LKV_GUARDED_BY(mutex_) = 0;
  int errors_in_a_row_ LKV_GUARDED_BY(mutex_) = 0;
  bool stopping_ LKV_GUARDED_BY(mutex_) = false;
  bool on_ LKV_GUARDED_BY(mutex_) = true;
  absl::Status off_reason_ LKV_GUARDED_BY(mutex_);

  std::atomic<uint64_t> encodes_done_{0}, decodes_done_{0}, batches_{0}, errors_{0};
  std::atomic<uint64_t> encode_cpu_ns_{0}, decode_cpu_ns_{0};
  std::array<std::atomic<uint64_t>, kGpuFallbacks> fallbacks_{};
  std::vector<std::thread> threads_;
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_GPU_GPU_EXECUTOR_H_
