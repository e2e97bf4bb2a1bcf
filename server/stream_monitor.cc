#include "server/stream_monitor.h"

#include <utility>

namespace latticekv {

StreamMonitor::StreamMonitor(int64_t tick_ms, std::function<void()> every_tick)
    : tick_ms_(tick_ms), every_tick_(std::move(every_tick)), thread_([this] { Run(); }) {}

StreamMonitor::~StreamMonitor() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
  }
  wake_.SignalAll();
  thread_.join();
}

void StreamMonitor::Watch(std::weak_ptr<MonitoredStream> stream) {
  MutexLock lock(mutex_);
  streams_.push_back(std::move(stream));
}

void StreamMonitor::Run() {
  while (true) {
    std::vector<std::shared_ptr<MonitoredStream>> alive;
    {
      MutexLock lock(mutex_);
      if (!stopping_) wake_.WaitFor(mutex_, tick_ms_);
      if (stopping_) return;
      std::erase_if(streams_, [](const auto& stream) { return stream.expired(); });
      for (const auto& stream : streams_) {
        if (auto locked = stream.lock()) alive.push_back(std::move(locked));
      }
    }
    every_tick_();
    for (const auto& stream : alive) stream->OnTick();
  }
}

}  // namespace latticekv
