// Buffers for parts on their way to the wire, used again and again. Internal to client/.
#ifndef LATTICEKV_CLIENT_SRC_PART_BUFFER_H_
#define LATTICEKV_CLIENT_SRC_PART_BUFFER_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/limits.h"
#include "core/base/mutex.h"

namespace latticekv {

using PartBuffer = std::shared_ptr<std::string>;

// A stream's buffers: a part's bytes must live until the transport is done with them, which may be
// after the write returned. Thread-safe; buffers may outlive the pool.
class PartPool {
 public:
  // An empty buffer with room for a part.
  PartBuffer Take() {
    std::unique_ptr<std::string> buffer;
    {
      MutexLock lock(shared_->mutex);
      if (!shared_->free.empty()) {
        buffer = std::move(shared_->free.back());
        shared_->free.pop_back();
      }
    }
    if (!buffer) buffer = std::make_unique<std::string>();
    buffer->clear();
    return {buffer.release(), [shared = shared_](std::string* done) {
              std::unique_ptr<std::string> owned(done);
              MutexLock lock(shared->mutex);
              if (shared->free.size() < kMaxFree) shared->free.push_back(std::move(owned));
            }};
  }

 private:
  static constexpr size_t kMaxFree = 4;  // together 16 MiB
  struct Shared {
    Mutex mutex;
    std::vector<std::unique_ptr<std::string>> free LKV_GUARDED_BY(mutex);
  };
  const std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_PART_BUFFER_H_
