// The CPU time of threads.
#ifndef LATTICEKV_CORE_BASE_THREAD_TIME_H_
#define LATTICEKV_CORE_BASE_THREAD_TIME_H_

#include <atomic>
#include <cstdint>
#include <ctime>

namespace latticekv {

// Of the calling thread.
inline uint64_t ThreadCpuNs() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<uint64_t>(time.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(time.tv_nsec);
}

// Adds the CPU time that its thread takes until its end to a counter of nanoseconds: what a core
// does, however many threads share it.
class BusyTimer {
 public:
  explicit BusyTimer(std::atomic<uint64_t>& total_ns) : total_ns_(total_ns) {}
  ~BusyTimer() { total_ns_ += ThreadCpuNs() - start_ns_; }
  BusyTimer(const BusyTimer&) = delete;
  BusyTimer& operator=(const BusyTimer&) = delete;

 private:
  std::atomic<uint64_t>& total_ns_;
  const uint64_t start_ns_ = ThreadCpuNs();
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_BASE_THREAD_TIME_H_
