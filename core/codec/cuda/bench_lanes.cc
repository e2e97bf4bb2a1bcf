#include "core/codec/cuda/bench_lanes.h"

#include <algorithm>

namespace latticekv {

absl::StatusOr<std::unique_ptr<BenchLanes>> BenchLanes::Make(size_t count, size_t streams_of_lane) {
  auto lanes = std::unique_ptr<BenchLanes>(new BenchLanes);
  lanes->times_.resize(count);
  lanes->streams_.resize(count);
  for (size_t i = 0; i < count * streams_of_lane; ++i) {
    cudaStream_t stream = nullptr;
    LKV_RETURN_IF_ERROR(
        CudaStatus(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "no stream"));
    lanes->streams_[i % count].push_back(stream);
  }
  for (size_t i = 0; i < count; ++i) {
    lanes->threads_.emplace_back([l = lanes.get(), i] { l->RunLane(i); });
  }
  return lanes;
}

BenchLanes::~BenchLanes() {
  {
    MutexLock lock(mutex_);
    stop_ = true;
  }
  wake_.SignalAll();
  for (std::thread& thread : threads_) thread.join();
  for (const auto& of_lane : streams_) {
    for (cudaStream_t stream : of_lane) cudaStreamDestroy(stream);
  }
}

absl::StatusOr<double> BenchLanes::Run(size_t batches, const Work& work) {
  std::fill(times_.begin(), times_.end(), GpuLaneTimes{});
  const BenchTime begin = std::chrono::steady_clock::now();
  MutexLock lock(mutex_);
  work_ = &work;
  batches_ = batches;
  next_ = 0;
  busy_ = streams_.size();
  status_ = absl::OkStatus();
  ++round_;
  wake_.SignalAll();
  while (busy_ > 0) idle_.Wait(mutex_);
  LKV_RETURN_IF_ERROR(status_);
  return MsSince(begin);
}

void BenchLanes::RunLane(size_t lane) {
  for (size_t seen = 0;;) {
    const Work* work = nullptr;
    size_t batches = 0;
    {
      MutexLock lock(mutex_);
      while (!stop_ && round_ == seen) wake_.Wait(mutex_);
      if (stop_) return;
      seen = round_;
      work = work_;
      batches = batches_;
    }
    const absl::Status status = WorkThrough(lane, batches, *work);
    // Whatever became of it: nothing is in flight when the pass is over.
    if (!status.ok()) {
      for (cudaStream_t stream : streams_[lane]) cudaStreamSynchronize(stream);
    }
    MutexLock lock(mutex_);
    if (status_.ok()) status_ = status;
    if (--busy_ == 0) idle_.Signal();
  }
}

absl::Status BenchLanes::WorkThrough(size_t lane, size_t batches, const Work& work) {
  for (size_t b = next_++; b < batches; b = next_++) {
    LKV_RETURN_IF_ERROR(work.batch(lane, b, streams_[lane], times_[lane]));
  }
  return work.end ? work.end(lane, streams_[lane], times_[lane]) : absl::OkStatus();
}

GpuLaneTimes BenchLanes::times() const {
  GpuLaneTimes out;
  const double share = 1.0 / static_cast<double>(times_.size());
  for (const GpuLaneTimes& t : times_) {
    out.plan += share * t.plan;
    out.enqueue += share * t.enqueue;
    out.wait_kernels += share * t.wait_kernels;
    out.collect += share * t.collect;
    out.wait_copies += share * t.wait_copies;
  }
  return out;
}

}  // namespace latticekv
