// Breaks off a stream on which nothing moves. Internal to client/.
#ifndef LATTICEKV_CLIENT_SRC_STREAM_WATCHDOG_H_
#define LATTICEKV_CLIENT_SRC_STREAM_WATCHDOG_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>

#include "core/base/mutex.h"

namespace latticekv {

// Calls `on_idle` once, from its own thread, when it is armed and Touch was not called for
// `idle_timeout_ms`. Thread-safe.
class StreamWatchdog {
 public:
  StreamWatchdog(int64_t idle_timeout_ms, std::function<void()> on_idle);
  ~StreamWatchdog();
  StreamWatchdog(const StreamWatchdog&) = delete;
  StreamWatchdog& operator=(const StreamWatchdog&) = delete;

  // Something moved.
  void Touch();
  // While disarmed time does not count; arming starts it anew.
  void Arm(bool armed);
  bool fired() const;

 private:
  using SteadyClock = std::chrono::steady_clock;
  void Watch();

  const int64_t idle_timeout_ms_;
  const std::function<void()> on_idle_;
  mutable Mutex mutex_;
  CondVar changed_;
  SteadyClock::time_point last_ LKV_GUARDED_BY(mutex_);
  bool armed_ LKV_GUARDED_BY(mutex_) = true;
  bool stop_ LKV_GUARDED_BY(mutex_) = false;
  bool fired_ LKV_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_STREAM_WATCHDOG_H_
