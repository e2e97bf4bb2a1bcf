#include "latticekv/backoff_policy.h"

#include <algorithm>

namespace latticekv {

ExponentialBackoffPolicy::ExponentialBackoffPolicy(int64_t initial_ms, int64_t max_ms,
                                                   double multiplier)
    : initial_ms_(initial_ms),
      max_ms_(max_ms),
      multiplier_(multiplier),
      delay_ms_(static_cast<double>(std::min(initial_ms, max_ms))),
      random_(std::random_device{}()) {}

std::unique_ptr<BackoffPolicy> ExponentialBackoffPolicy::Clone() const {
  return std::make_unique<ExponentialBackoffPolicy>(initial_ms_, max_ms_, multiplier_);
}

int64_t ExponentialBackoffPolicy::NextDelayMs() {
  std::uniform_real_distribution<double> jitter(delay_ms_ / 2, delay_ms_);
  const auto delay = static_cast<int64_t>(jitter(random_));
  delay_ms_ = std::min(delay_ms_ * multiplier_, static_cast<double>(max_ms_));
  return delay;
}

}  // namespace latticekv
