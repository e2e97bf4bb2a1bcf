// A device that codes on the CPU and fails as it is told to.
#ifndef LATTICEKV_TESTS_SUPPORT_FAKE_GPU_H_
#define LATTICEKV_TESTS_SUPPORT_FAKE_GPU_H_

#include <memory>
#include <string>
#include <vector>

#include "core/base/bytes.h"
#include "core/base/mutex.h"
#include "core/codec/gpu/gpu_device.h"

namespace latticekv::testing {

// Memory that the fake device takes for its own, in this process or another one: a memory file,
// whose handle, of the size of CUDA's, is its path.
class FakeGpuMemory {
 public:
  explicit FakeGpuMemory(size_t bytes);
  ~FakeGpuMemory();
  FakeGpuMemory(const FakeGpuMemory&) = delete;
  FakeGpuMemory& operator=(const FakeGpuMemory&) = delete;
  MutableByteSpan bytes() const { return {data_, bytes_}; }
  std::string handle() const;

 private:
  const size_t bytes_;
  int descriptor_ = -1;
  std::byte* data_ = nullptr;
};

// What happens on the device and what it did. Shared by the test and its devices. Thread-safe.
class FakeGpuScript {
 public:
  // Errors of the next batches, first come first.
  void FailNext(int batches, absl::Status status);
  // Batches whose raw bytes pass this do not fit. 0: all fit.
  void SetCapacity(size_t raw_bytes);
  // Batches wait until Open; they are counted before they wait.
  void Close();
  void Open();
  // Frames come out wrong.
  void SpoilFrames();

  void WaitForBatches(size_t count);  // begun
  std::vector<size_t> batch_sizes() const;
  int most_at_once() const;
  int regions() const;  // mapped now

  // For the lanes.
  absl::Status Begin(size_t jobs, size_t raw_bytes);
  void End();
  bool spoils() const;
  void CountRegion(int change);

 private:
  mutable Mutex mutex_;
  CondVar changed_;
  std::vector<absl::Status> failures_ LKV_GUARDED_BY(mutex_);
  size_t capacity_ LKV_GUARDED_BY(mutex_) = 0;
  bool closed_ LKV_GUARDED_BY(mutex_) = false;
  bool spoil_ LKV_GUARDED_BY(mutex_) = false;
  std::vector<size_t> batch_sizes_ LKV_GUARDED_BY(mutex_);
  int at_once_ LKV_GUARDED_BY(mutex_) = 0;
  int most_at_once_ LKV_GUARDED_BY(mutex_) = 0;
  int regions_ LKV_GUARDED_BY(mutex_) = 0;
};

std::unique_ptr<GpuDevice> MakeFakeGpu(std::shared_ptr<FakeGpuScript> script,
                                       const GpuOptions& options);

}  // namespace latticekv::testing

#endif  // LATTICEKV_TESTS_SUPPORT_FAKE_GPU_H_
