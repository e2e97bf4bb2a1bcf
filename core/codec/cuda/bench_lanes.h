// Host threads that work through batches, each with streams and working memory of its own, and
// where their time goes. Internal to core/codec/cuda.
#ifndef LATTICEKV_CORE_CODEC_CUDA_BENCH_LANES_H_
#define LATTICEKV_CORE_CODEC_CUDA_BENCH_LANES_H_

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "core/base/mutex.h"
#include "core/codec/cuda/owned_memory.h"
#include "core/codec/gpu/gpu_bench.h"

namespace latticekv {

using BenchTime = std::chrono::steady_clock::time_point;
inline double MsSince(BenchTime begin) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
      .count();
}

// Adds the time since its last call, or its making, to what the caller names.
class StepClock {
 public:
  void Add(double& ms) {
    ms += MsSince(last_);
    last_ = std::chrono::steady_clock::now();
  }

 private:
  BenchTime last_ = std::chrono::steady_clock::now();
};

class BenchLanes {
 public:
  using Streams = std::span<const cudaStream_t>;
  struct Work {
    std::function<absl::Status(size_t lane, size_t batch, Streams streams, GpuLaneTimes& times)>
        batch;
    // When no batch is left, waits for those still under way. May be null.
    std::function<absl::Status(size_t lane, Streams streams, GpuLaneTimes& times)> end;
  };
  static absl::StatusOr<std::unique_ptr<BenchLanes>> Make(size_t count, size_t streams_of_lane);
  ~BenchLanes();

  // Milliseconds until all batches were worked through; the first error.
  absl::StatusOr<double> Run(size_t batches, const Work& work);
  // Of the last pass, mean of the lanes.
  GpuLaneTimes times() const;

 private:
  BenchLanes() = default;
  void RunLane(size_t lane);
  absl::Status WorkThrough(size_t lane, size_t batches, const Work& work);

  std::vector<std::vector<cudaStream_t>> streams_;  // [lane]
  std::vector<GpuLaneTimes> times_;                 // [lane]
  std::vector<std::thread> threads_;
  std::atomic<size_t> next_ = 0;

  Mutex mutex_;
  CondVar wake_, idle_;
  const Work* work_ LKV_GUARDED_BY(mutex_) = nullptr;
  size_t batches_ LKV_GUARDED_BY(mutex_) = 0;
  size_t busy_ LKV_GUARDED_BY(mutex_) = 0;
  size_t round_ LKV_GUARDED_BY(mutex_) = 0;
  bool stop_ LKV_GUARDED_BY(mutex_) = false;
  absl::Status status_ LKV_GUARDED_BY(mutex_);
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CUDA_BENCH_LANES_H_
