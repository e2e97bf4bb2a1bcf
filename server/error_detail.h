// Errors with a typed reason: an absl::Status that carries a v1::ErrorDetail as its payload.
#ifndef LATTICEKV_SERVER_ERROR_DETAIL_H_
#define LATTICEKV_SERVER_ERROR_DETAIL_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "latticekv/v1/blocks.pb.h"

namespace latticekv {

// An error of `code` whose detail says `reason` and, when a limit was passed, the limit's name in
// docs/limits.md. `message` is one sentence that says what to do.
absl::Status ErrorWith(absl::StatusCode code, v1::Reason reason, std::string_view message,
                       std::string_view limit = {});

// A passed limit: RESOURCE_EXHAUSTED, REASON_LIMIT.
absl::Status LimitError(std::string_view limit, std::string_view message);

// What a client sent cannot be right: INVALID_ARGUMENT, REASON_BAD_PAYLOAD.
absl::Status BadPayload(std::string_view message);

// The detail of any error; without a typed one, the reason is unspecified and the message is the
// status's own.
v1::ErrorDetail DetailOf(const absl::Status& status);

// `status` with `reason`, unless it has one already.
absl::Status WithReason(absl::Status status, v1::Reason reason);

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_ERROR_DETAIL_H_
