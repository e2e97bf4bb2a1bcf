// Time behind a seam, so that tests of TTLs and timeouts need not sleep.
#ifndef LATTICEKV_CORE_BASE_CLOCK_H_
#define LATTICEKV_CORE_BASE_CLOCK_H_

#include <atomic>
#include <cstdint>

namespace latticekv {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  // Milliseconds since the Unix epoch; may step when the host's clock is set.
  virtual int64_t WallMs() const = 0;
  // Milliseconds that never go backwards, from an arbitrary start.
  virtual int64_t MonotonicMs() const = 0;

  // The host's clock. Never destroyed.
  static const Clock* Real();
};

// A clock that stands still until told otherwise.
class ManualClock : public Clock {
 public:
  int64_t WallMs() const override { return now_ms_.load(); }
  int64_t MonotonicMs() const override { return now_ms_.load(); }
  void Advance(int64_t ms) { now_ms_ += ms; }

 private:
  std::atomic<int64_t> now_ms_{1'000'000};
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_BASE_CLOCK_H_
