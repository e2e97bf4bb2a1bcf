#include "server/read_pool.h"

#include <utility>

namespace latticekv {
namespace {

constexpr uint64_t kBytesPerMs = 1'000'000;

}  // namespace

ReadPool::ReadPool(int threads, size_t max_waiting_jobs) : max_waiting_jobs_(max_waiting_jobs) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Run(); });
}

ReadPool::~ReadPool() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
  }
  wake_.SignalAll();
  for (std::thread& thread : threads_) thread.join();
}

int64_t ReadPool::TurnOf(int64_t now_ms, uint64_t bytes) {
  return now_ms + static_cast<int64_t>(bytes / kBytesPerMs);
}

bool ReadPool::Submit(int64_t turn, std::function<void()> job) {
  {
    MutexLock lock(mutex_);
    if (stopping_ || jobs_.size() >= max_waiting_jobs_) return false;
    jobs_.emplace(turn, std::move(job));
  }
  wake_.Signal();
  return true;
}

void ReadPool::Run() {
  while (true) {
    std::function<void()> job;
    {
      MutexLock lock(mutex_);
      while (!stopping_ && jobs_.empty()) wake_.Wait(mutex_);
      if (stopping_) return;
      job = std::move(jobs_.begin()->second);
      jobs_.erase(jobs_.begin());
    }
    job();
  }
}

}  // namespace latticekv
