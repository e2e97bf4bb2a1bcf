// Threads of the daemon's own with a bounded queue: what codec_pool.h and read_pool.h have in
// common. Only the order of waiting jobs differs, which is the queue's.
#ifndef LATTICEKV_SERVER_WORKER_POOL_H_
#define LATTICEKV_SERVER_WORKER_POOL_H_

#include <cstddef>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "core/base/mutex.h"

namespace latticekv {

// Thread-safe. Destruction waits for running jobs and drops waiting ones. A Queue, which the pool
// locks, has
//   Place                                      what decides a job's place among those that wait
//   void Push(Place, std::function<void()>)
//   std::function<void()> Pop()                the next job; only called while there is one
//   size_t size() const
template <typename Queue>
class WorkerPool {
 public:
  WorkerPool(int threads, size_t max_waiting_jobs) : max_waiting_jobs_(max_waiting_jobs) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Run(); });
  }
  ~WorkerPool() {
    {
      MutexLock lock(mutex_);
      stopping_ = true;
    }
    wake_.SignalAll();
    for (std::thread& thread : threads_) thread.join();
  }
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // False, without taking the job, when `max_waiting_jobs` wait already or the pool ends. Never
  // blocks.
  [[nodiscard]] bool Submit(typename Queue::Place place, std::function<void()> job) {
    {
      MutexLock lock(mutex_);
      if (stopping_ || queue_.size() >= max_waiting_jobs_) return false;
      queue_.Push(place, std::move(job));
    }
    wake_.Signal();
    return true;
  }
  int threads() const { return static_cast<int>(threads_.size()); }

 private:
  void Run() {
    while (true) {
      std::function<void()> job;
      {
        MutexLock lock(mutex_);
        while (!stopping_ && queue_.size() == 0) wake_.Wait(mutex_);
        if (stopping_) return;
        job = queue_.Pop();
      }
      job();
    }
  }

  const size_t max_waiting_jobs_;
  Mutex mutex_;
  CondVar wake_;
  bool stopping_ LKV_GUARDED_BY(mutex_) = false;
  Queue queue_ LKV_GUARDED_BY(mutex_);
  std::vector<std::thread> threads_;
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_WORKER_POOL_H_
