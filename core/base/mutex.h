// std::mutex with Clang thread-safety annotations. core uses these instead of absl::Mutex, about
// which ThreadSanitizer reports false races in the packaged build.
#ifndef LATTICEKV_CORE_BASE_MUTEX_H_
#define LATTICEKV_CORE_BASE_MUTEX_H_

#include <chrono>
#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define LKV_THREAD_ANNOTATION_(x) __attribute__((x))
#else
#define LKV_THREAD_ANNOTATION_(x)
#endif

#define LKV_CAPABILITY(x) LKV_THREAD_ANNOTATION_(capability(x))
#define LKV_SCOPED_CAPABILITY LKV_THREAD_ANNOTATION_(scoped_lockable)
#define LKV_GUARDED_BY(x) LKV_THREAD_ANNOTATION_(guarded_by(x))
#define LKV_REQUIRES(...) LKV_THREAD_ANNOTATION_(requires_capability(__VA_ARGS__))
#define LKV_EXCLUDES(...) LKV_THREAD_ANNOTATION_(locks_excluded(__VA_ARGS__))
#define LKV_ACQUIRE(...) LKV_THREAD_ANNOTATION_(acquire_capability(__VA_ARGS__))
#define LKV_RELEASE(...) LKV_THREAD_ANNOTATION_(release_capability(__VA_ARGS__))
#define LKV_NO_ANALYSIS LKV_THREAD_ANNOTATION_(no_thread_safety_analysis)

namespace latticekv {

class LKV_CAPABILITY("mutex") Mutex {
 public:
  void Lock() LKV_ACQUIRE() { mutex_.lock(); }
  void Unlock() LKV_RELEASE() { mutex_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mutex_;
};

class LKV_SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) LKV_ACQUIRE(mutex) : mutex_(mutex) { mutex_.Lock(); }
  ~MutexLock() LKV_RELEASE() { mutex_.Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

class CondVar {
 public:
  void Wait(Mutex& mutex) LKV_REQUIRES(mutex) LKV_NO_ANALYSIS {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    cv_.wait(lock);
    lock.release();
  }
  // False when `timeout_ms` passed without a signal.
  bool WaitFor(Mutex& mutex, int64_t timeout_ms) LKV_REQUIRES(mutex) LKV_NO_ANALYSIS {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    const auto status = cv_.wait_for(lock, std::chrono::milliseconds(timeout_ms));
    lock.release();
    return status == std::cv_status::no_timeout;
  }
  void Signal() { cv_.notify_one(); }
  void SignalAll() { cv_.notify_all(); }

 private:
  std::condition_variable cv_;
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_BASE_MUTEX_H_
