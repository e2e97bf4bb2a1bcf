// Repeats a call as the policies say. Internal to client/.
#ifndef LATTICEKV_CLIENT_SRC_RETRY_LOOP_H_
#define LATTICEKV_CLIENT_SRC_RETRY_LOOP_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "latticekv/client_options.h"

namespace latticekv {

// Waits; a seam for tests.
using Sleeper = std::function<void(int64_t delay_ms)>;

inline const absl::Status& StatusOf(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& result) {
  return result.status();
}

// The failures of one call. Not thread-safe; `options` and `sleep` must outlive it, and both
// policies must be set.
class RetryState {
 public:
  RetryState(const ClientOptions& options, const Sleeper& sleep)
      : options_(options), sleep_(sleep) {
    Reset();
  }
  // After progress: failures before it no longer count.
  void Reset() {
    retry_ = options_.retry_policy->Clone();
    backoff_ = options_.backoff_policy->Clone();
  }
  // True, after waiting (for `max_ms` at most), when the call that failed with `status` may be made
  // again.
  bool WaitToRetry(const absl::Status& status, std::optional<int64_t> max_ms = std::nullopt) {
    if (!retry_->OnFailure(status)) return false;
    const int64_t delay_ms = backoff_->NextDelayMs();
    sleep_(max_ms ? std::clamp<int64_t>(*max_ms, 0, delay_ms) : delay_ms);
    return true;
  }

 private:
  const ClientOptions& options_;
  const Sleeper& sleep_;
  std::unique_ptr<RetryPolicy> retry_;
  std::unique_ptr<BackoffPolicy> backoff_;
};

// The result of `call()`, an absl::Status or StatusOr, repeated while it fails and `retry` allows.
template <typename Call>
auto RetryLoop(RetryState retry, const Call& call) {
  while (true) {
    auto result = call();
    if (StatusOf(result).ok() || !retry.WaitToRetry(StatusOf(result))) return result;
  }
}

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_RETRY_LOOP_H_
