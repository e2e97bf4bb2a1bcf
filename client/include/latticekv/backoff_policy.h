// How long to wait between two attempts of a call.
#ifndef LATTICEKV_BACKOFF_POLICY_H_
#define LATTICEKV_BACKOFF_POLICY_H_

#include <cstdint>
#include <memory>
#include <random>

namespace latticekv {

// Like RetryPolicy a prototype that each call clones; not thread-safe.
class BackoffPolicy {
 public:
  virtual ~BackoffPolicy() = default;
  virtual std::unique_ptr<BackoffPolicy> Clone() const = 0;
  // Milliseconds to wait before the next attempt.
  virtual int64_t NextDelayMs() = 0;
};

// Waits a random time between half of a delay and all of it, so that many clients of a restarted
// server do not come back at once. The delay starts at `initial_ms` and grows by `multiplier` up to
// `max_ms`.
class ExponentialBackoffPolicy : public BackoffPolicy {
 public:
  ExponentialBackoffPolicy(int64_t initial_ms, int64_t max_ms, double multiplier = 2.0);
  std::unique_ptr<BackoffPolicy> Clone() const override;
  int64_t NextDelayMs() override;

 private:
  int64_t initial_ms_;
  int64_t max_ms_;
  double multiplier_;
  double delay_ms_;
  std::minstd_rand random_;
};

}  // namespace latticekv

#endif  // LATTICEKV_BACKOFF_POLICY_H_
