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
  // Calls `work` once with each of 0 .. count - 1, in the calling thread, which may be one of the
  // pool's, and in those of the pool that find no job meanwhile. Returns when all calls have.
  void Share(size_t count, const std::function<void(size_t)>& work) {
    SharedWork shared{&work, count};
    MutexLock lock(mutex_);
    shared_.push_back(&shared);
    if (count > 1) wake_.SignalAll();
    while (shared.next < shared.count) CallLocked(shared);
    std::erase(shared_, &shared);
    while (shared.done < shared.count) shared_done_.Wait(mutex_);
  }
  int threads() const { return static_cast<int>(threads_.size()); }

 private:
  struct SharedWork {
    const std::function<void(size_t)>* work;
    size_t count;
    size_t next = 0, done = 0;  // calls begun, calls ended
  };

  // Makes the next call of `shared`, unlocked meanwhile.
  void CallLocked(SharedWork& shared) LKV_REQUIRES(mutex_) {
    const size_t i = shared.next++;
    mutex_.Unlock();
    (*shared.work)(i);
    mutex_.Lock();
    // The last thing done to it here: who waits for it may return.
    if (++shared.done == shared.count) shared_done_.SignalAll();
  }

  // The oldest shared work with calls to make; null: none.
  SharedWork* NextSharedLocked() LKV_REQUIRES(mutex_) {
    for (SharedWork* shared : shared_) {
      if (shared->next < shared->count) return shared;
    }
    return nullptr;
  }

  void Run() {
    MutexLock lock(mutex_);
    while (!stopping_) {
      if (queue_.size() > 0) {
        std::function<void()> job = queue_.Pop();
        mutex_.Unlock();
        job();
        job = nullptr;
        mutex_.Lock();
      } else if (SharedWork* const shared = NextSharedLocked()) {
        CallLocked(*shared);
      } else {
        wake_.Wait(mutex_);
      }
    }
  }

  const size_t max_waiting_jobs_;
  Mutex mutex_;
  CondVar wake_, shared_done_;
  bool stopping_ LKV_GUARDED_BY(mutex_) = false;
  Queue queue_ LKV_GUARDED_BY(mutex_);
  std::vector<SharedWork*> shared_ LKV_GUARDED_BY(mutex_);  // on the stacks of who shares
  std::vector<std::thread> threads_;
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_WORKER_POOL_H_
