// Threads that encode and decode, so that gRPC's own never do.
#ifndef LATTICEKV_SERVER_CODEC_POOL_H_
#define LATTICEKV_SERVER_CODEC_POOL_H_

#include <cstddef>
#include <deque>
#include <functional>

#include "server/worker_pool.h"

namespace latticekv {

// Encodes and decodes alternate while both wait, so that neither readers nor writers starve; those
// of one kind run in their order.
class CodecQueue {
 public:
  enum class Place { kEncode, kDecode };

  void Push(Place kind, std::function<void()> job);
  std::function<void()> Pop();
  size_t size() const { return encodes_.size() + decodes_.size(); }

 private:
  bool decode_next_ = true;
  std::deque<std::function<void()>> encodes_;
  std::deque<std::function<void()>> decodes_;
};

class CodecPool : public WorkerPool<CodecQueue> {
 public:
  using Kind = CodecQueue::Place;
  using WorkerPool::WorkerPool;
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_CODEC_POOL_H_
