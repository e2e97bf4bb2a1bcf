// Threads that wait for the disk, so that those that decode never do.
#ifndef LATTICEKV_SERVER_READ_POOL_H_
#define LATTICEKV_SERVER_READ_POOL_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>

#include "server/worker_pool.h"

namespace latticekv {

// Jobs by turn, the lowest first, those of one turn in their order.
class ReadQueue {
 public:
  using Place = int64_t;

  void Push(int64_t turn, std::function<void()> job);
  std::function<void()> Pop();
  size_t size() const { return jobs_.size(); }

 private:
  std::multimap<int64_t, std::function<void()>> jobs_;
};

class ReadPool : public WorkerPool<ReadQueue> {
 public:
  using WorkerPool::WorkerPool;

  // The turn of a request for `bytes` that comes at `now_ms`: when it would be done if it had a
  // disk of 1 GB/s for itself. So requests of one size are read one after the other, which lets the
  // first decode and send while the next is read; a small one passes large ones that came shortly
  // before, and none waits for ever.
  static int64_t TurnOf(int64_t now_ms, uint64_t bytes);
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_READ_POOL_H_
