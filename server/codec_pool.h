// Threads that encode and decode, so that gRPC's own never do.
#ifndef LATTICEKV_SERVER_CODEC_POOL_H_
#define LATTICEKV_SERVER_CODEC_POOL_H_

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "core/base/mutex.h"

namespace latticekv {

// Thread-safe. Destruction waits for running jobs and drops waiting ones.
class CodecPool {
 public:
  enum class Kind { kEncode, kDecode };

  CodecPool(int threads, size_t max_waiting_jobs);
  ~CodecPool();
  CodecPool(const CodecPool&) = delete;
  CodecPool& operator=(const CodecPool&) = delete;

  // False, without taking the job, when `max_waiting_jobs` wait already. Never blocks.
  [[nodiscard]] bool Submit(Kind kind, std::function<void()> job);
  int threads() const { return static_cast<int>(threads_.size()); }

 private:
  void Run();

  const size_t max_waiting_jobs_;
  Mutex mutex_;
  CondVar wake_;
  bool stopping_ LKV_GUARDED_BY(mutex_) = false;
  bool decode_next_ LKV_GUARDED_BY(mutex_) = true;
  std::deque<std::function<void()>> encodes_ LKV_GUARDED_BY(mutex_);
  std::deque<std::function<void()>> decodes_ LKV_GUARDED_BY(mutex_);
  std::vector<std::thread> threads_;
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_CODEC_POOL_H_
