// Threads that wait for the disk, so that those that decode never do.
#ifndef LATTICEKV_SERVER_READ_POOL_H_
#define LATTICEKV_SERVER_READ_POOL_H_

#include <cstdint>
#include <functional>
#include <map>
#include <thread>
#include <vector>

#include "core/base/mutex.h"

namespace latticekv {

// Thread-safe. Destruction waits for running jobs and drops waiting ones.
class ReadPool {
 public:
  ReadPool(int threads, size_t max_waiting_jobs);
  ~ReadPool();
  ReadPool(const ReadPool&) = delete;
  ReadPool& operator=(const ReadPool&) = delete;

  // The turn of a request for `bytes` that comes at `now_ms`: when it would be done if it had a
  // disk of 1 GB/s for itself. So requests of one size are read one after the other, which lets the
  // first decode and send while the next is read; a small one passes large ones that came shortly
  // before, and none waits for ever.
  static int64_t TurnOf(int64_t now_ms, uint64_t bytes);

  // Jobs run by turn, the lowest first, those of one turn in their order. False, without taking the
  // job, when `max_waiting_jobs` wait already. Never blocks.
  [[nodiscard]] bool Submit(int64_t turn, std::function<void()> job);

 private:
  void Run();

  const size_t max_waiting_jobs_;
  Mutex mutex_;
  CondVar wake_;
  bool stopping_ LKV_GUARDED_BY(mutex_) = false;
  std::multimap<int64_t, std::function<void()>> jobs_ LKV_GUARDED_BY(mutex_);  // by turn
  std::vector<std::thread> threads_;
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_READ_POOL_H_
