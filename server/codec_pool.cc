#include "server/codec_pool.h"

#include <utility>

namespace latticekv {

CodecPool::CodecPool(int threads, size_t max_waiting_jobs) : max_waiting_jobs_(max_waiting_jobs) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Run(); });
}

CodecPool::~CodecPool() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
  }
  wake_.SignalAll();
  for (std::thread& thread : threads_) thread.join();
}

bool CodecPool::Submit(Kind kind, std::function<void()> job) {
  {
    MutexLock lock(mutex_);
    if (stopping_ || encodes_.size() + decodes_.size() >= max_waiting_jobs_) return false;
    (kind == Kind::kEncode ? encodes_ : decodes_).push_back(std::move(job));
  }
  wake_.Signal();
  return true;
}

void CodecPool::Run() {
  while (true) {
    std::function<void()> job;
    {
      MutexLock lock(mutex_);
      while (!stopping_ && encodes_.empty() && decodes_.empty()) wake_.Wait(mutex_);
      if (stopping_) return;
      // Alternate while both wait, so that neither readers nor writers starve.
      auto& queue = encodes_.empty() || (decode_next_ && !decodes_.empty()) ? decodes_ : encodes_;
      decode_next_ = &queue == &encodes_;
      job = std::move(queue.front());
      queue.pop_front();
    }
    job();
  }
}

}  // namespace latticekv
