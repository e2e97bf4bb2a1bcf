// Large buffers that are used again and again.
#ifndef LATTICEKV_CORE_BASE_BUFFER_POOL_H_
#define LATTICEKV_CORE_BASE_BUFFER_POOL_H_

#include <cstddef>
#include <utility>
#include <vector>

#include "core/base/bytes.h"
#include "core/base/mutex.h"

namespace latticekv {

// Without it the kernel makes, clears and takes back the pages of every payload and every frame,
// which costs more than copying it. Thread-safe.
class BufferPool {
 public:
  // Below, malloc keeps its pages anyway: such buffers are made anew.
  static constexpr size_t kLeastBytes = 64 << 10;

  // Keeps unused buffers of at most `max_bytes` together.
  explicit BufferPool(size_t max_bytes) : max_bytes_(max_bytes) {}

  // An empty buffer with room for `bytes`, and at most a sixteenth more.
  ByteVector Take(size_t bytes) {
    ByteVector out;
    if (bytes >= kLeastBytes) {
      MutexLock lock(mutex_);
      for (ByteVector& buffer : free_) {
        if (buffer.capacity() < bytes || buffer.capacity() - bytes > bytes / 16) continue;
        free_bytes_ -= buffer.capacity();
        std::swap(out, buffer);
        std::swap(buffer, free_.back());
        free_.pop_back();
        break;
      }
    }
    out.reserve(bytes);
    return out;
  }
  void Give(ByteVector buffer) {
    if (buffer.capacity() < kLeastBytes) return;
    buffer.clear();
    std::vector<ByteVector> dropped;  // freed without the lock
    MutexLock lock(mutex_);
    if (buffer.capacity() > max_bytes_) return;
    // The oldest go: sizes that nobody asks for would stay for good.
    size_t drop = 0;
    while (free_bytes_ + buffer.capacity() > max_bytes_) {
      free_bytes_ -= free_[drop].capacity();
      dropped.push_back(std::move(free_[drop++]));
    }
    free_.erase(free_.begin(), free_.begin() + static_cast<std::ptrdiff_t>(drop));
    free_bytes_ += buffer.capacity();
    free_.push_back(std::move(buffer));
  }

 private:
  const size_t max_bytes_;
  Mutex mutex_;
  std::vector<ByteVector> free_ LKV_GUARDED_BY(mutex_);
  size_t free_bytes_ LKV_GUARDED_BY(mutex_) = 0;
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_BASE_BUFFER_POOL_H_
