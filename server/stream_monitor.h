// The thread that looks at timeouts of open streams.
#ifndef LATTICEKV_SERVER_STREAM_MONITOR_H_
#define LATTICEKV_SERVER_STREAM_MONITOR_H_

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "core/base/mutex.h"

namespace latticekv {

class MonitoredStream {
 public:
  virtual ~MonitoredStream() = default;
  // Called about every tick from the monitor's thread.
  virtual void OnTick() = 0;
};

// Thread-safe.
class StreamMonitor {
 public:
  // `every_tick` is called before the streams.
  StreamMonitor(int64_t tick_ms, std::function<void()> every_tick);
  ~StreamMonitor();
  StreamMonitor(const StreamMonitor&) = delete;
  StreamMonitor& operator=(const StreamMonitor&) = delete;

  // Watches `stream` for as long as someone else owns it.
  void Watch(std::weak_ptr<MonitoredStream> stream);

 private:
  void Run();

  const int64_t tick_ms_;
  const std::function<void()> every_tick_;
  Mutex mutex_;
  CondVar wake_;
  bool stopping_ LKV_GUARDED_BY(mutex_) = false;
  std::vector<std::weak_ptr<MonitoredStream>> streams_ LKV_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_STREAM_MONITOR_H_
