#include "client/src/stream_watchdog.h"

#include <algorithm>
#include <utility>

namespace latticekv {

StreamWatchdog::StreamWatchdog(int64_t idle_timeout_ms, std::function<void()> on_idle)
    : idle_timeout_ms_(idle_timeout_ms),
      on_idle_(std::move(on_idle)),
      last_(SteadyClock::now()),
      thread_([this] { Watch(); }) {}

StreamWatchdog::~StreamWatchdog() {
  {
    MutexLock lock(mutex_);
    stop_ = true;
    changed_.SignalAll();
  }
  thread_.join();
}

void StreamWatchdog::Touch() {
  MutexLock lock(mutex_);
  last_ = SteadyClock::now();
}

void StreamWatchdog::Arm(bool armed) {
  MutexLock lock(mutex_);
  armed_ = armed;
  last_ = SteadyClock::now();
}

bool StreamWatchdog::fired() const {
  MutexLock lock(mutex_);
  return fired_;
}

void StreamWatchdog::Watch() {
  {
    MutexLock lock(mutex_);
    while (!fired_) {
      if (stop_) return;
      const int64_t idle_ms =
          std::chrono::duration_cast<std::chrono::milliseconds>(SteadyClock::now() - last_).count();
      fired_ = armed_ && idle_ms >= idle_timeout_ms_;
      const int64_t left_ms = armed_ ? idle_timeout_ms_ - idle_ms : idle_timeout_ms_;
      if (!fired_) changed_.WaitFor(mutex_, std::max<int64_t>(left_ms, 1));
    }
  }
  on_idle_();
}

}  // namespace latticekv
