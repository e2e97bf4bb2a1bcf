// How often a failed call is repeated. Calls are repeated only when the server was not reached or
// went away (UNAVAILABLE); everything the client does is idempotent.
#ifndef LATTICEKV_RETRY_POLICY_H_
#define LATTICEKV_RETRY_POLICY_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "core/base/clock.h"

namespace latticekv {

// Counts the failures of one call. The object in ClientOptions is a prototype: each call works on a
// Clone(), so policies need not be thread-safe.
class RetryPolicy {
 public:
  virtual ~RetryPolicy() = default;
  // A fresh policy with the same limits, its count and time starting now.
  virtual std::unique_ptr<RetryPolicy> Clone() const = 0;
  // Records a failure; true when the call may be tried again.
  virtual bool OnFailure(const absl::Status& status) = 0;

  // True for errors that another attempt may cure: UNAVAILABLE.
  static bool IsTransient(const absl::Status& status);
};

// Gives up after more than `max_errors` transient failures.
class LimitedErrorCountRetryPolicy : public RetryPolicy {
 public:
  explicit LimitedErrorCountRetryPolicy(int max_errors) : max_errors_(max_errors) {}
  std::unique_ptr<RetryPolicy> Clone() const override;
  bool OnFailure(const absl::Status& status) override;

 private:
  int max_errors_;
  int errors_ = 0;
};

// Gives up on the first failure that comes `max_duration_ms` after the call began.
class LimitedTimeRetryPolicy : public RetryPolicy {
 public:
  // `clock` must outlive the policy and its clones.
  explicit LimitedTimeRetryPolicy(int64_t max_duration_ms, const Clock* clock = Clock::Real())
      : max_duration_ms_(max_duration_ms), clock_(clock), start_ms_(clock->MonotonicMs()) {}
  std::unique_ptr<RetryPolicy> Clone() const override;
  bool OnFailure(const absl::Status& status) override;

 private:
  int64_t max_duration_ms_;
  const Clock* clock_;
  int64_t start_ms_;
};

}  // namespace latticekv

#endif  // LATTICEKV_RETRY_POLICY_H_
