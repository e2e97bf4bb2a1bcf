// How long a call may take and who may break it off. Internal to client/.
#ifndef LATTICEKV_CLIENT_SRC_CALL_LIMIT_H_
#define LATTICEKV_CLIENT_SRC_CALL_LIMIT_H_

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "client/src/stream_watchdog.h"
#include "latticekv/cancel.h"

namespace latticekv {

// The timeout and the token of one call, over all its attempts.
class CallLimit {
 public:
  CallLimit(int64_t timeout_ms, CancelToken token)
      : timeout_ms_(timeout_ms), token_(std::move(token)) {}
  const CancelToken& token() const { return token_; }
  // Nothing: there is no timeout.
  std::optional<int64_t> LeftMs() const {
    if (timeout_ms_ <= 0) return std::nullopt;
    const auto passed = std::chrono::steady_clock::now() - start_;
    return timeout_ms_ - std::chrono::duration_cast<std::chrono::milliseconds>(passed).count();
  }
  // CANCELLED or DEADLINE_EXCEEDED when it is so.
  absl::Status Check(const char* what) const {
    if (token_.cancelled()) return absl::CancelledError(absl::StrCat(what, ": cancelled"));
    const auto left_ms = LeftMs();
    if (!left_ms || *left_ms > 0) return absl::OkStatus();
    return absl::DeadlineExceededError(absl::StrCat(what, ": not done within ", timeout_ms_,
                                                    " ms; what was stored by then stays"));
  }

 private:
  const int64_t timeout_ms_;
  const CancelToken token_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// While it lives, breaks the stream off when the time is up or the token is cancelled.
class CallGuard {
 public:
  CallGuard(const CallLimit& limit, const std::function<void()>& cancel)
      : registration_(limit.token(), cancel) {
    if (const auto left_ms = limit.LeftMs()) timer_.emplace(std::max<int64_t>(*left_ms, 1), cancel);
  }

 private:
  const CancelToken::Registration registration_;
  std::optional<StreamWatchdog> timer_;
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_CALL_LIMIT_H_
