#include "latticekv/retry_policy.h"

namespace latticekv {

bool RetryPolicy::IsTransient(const absl::Status& status) {
  return status.code() == absl::StatusCode::kUnavailable;
}

std::unique_ptr<RetryPolicy> LimitedErrorCountRetryPolicy::Clone() const {
  return std::make_unique<LimitedErrorCountRetryPolicy>(max_errors_);
}

bool LimitedErrorCountRetryPolicy::OnFailure(const absl::Status& status) {
  return IsTransient(status) && ++errors_ <= max_errors_;
}

std::unique_ptr<RetryPolicy> LimitedTimeRetryPolicy::Clone() const {
  return std::make_unique<LimitedTimeRetryPolicy>(max_duration_ms_, clock_);
}

bool LimitedTimeRetryPolicy::OnFailure(const absl::Status& status) {
  return IsTransient(status) && clock_->MonotonicMs() - start_ms_ < max_duration_ms_;
}

}  // namespace latticekv
