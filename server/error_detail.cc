#include "server/error_detail.h"

#include "absl/strings/cord.h"

namespace latticekv {
namespace {

constexpr char kDetailUrl[] = "type.googleapis.com/latticekv.v1.ErrorDetail";

absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }

}  // namespace

absl::Status ErrorWith(absl::StatusCode code, v1::Reason reason, std::string_view message,
                       std::string_view limit) {
  v1::ErrorDetail detail;
  detail.set_reason(reason);
  detail.set_limit(std::string(limit));
  detail.set_message(std::string(message));
  absl::Status status(code, ToAbsl(message));
  status.SetPayload(kDetailUrl, absl::Cord(detail.SerializeAsString()));
  return status;
}

absl::Status LimitError(std::string_view limit, std::string_view message) {
  return ErrorWith(absl::StatusCode::kResourceExhausted, v1::REASON_LIMIT, message, limit);
}

absl::Status BadPayload(std::string_view message) {
  return ErrorWith(absl::StatusCode::kInvalidArgument, v1::REASON_BAD_PAYLOAD, message);
}

v1::ErrorDetail DetailOf(const absl::Status& status) {
  v1::ErrorDetail detail;
  const auto payload = status.GetPayload(kDetailUrl);
  if (!payload || !detail.ParseFromString(std::string(*payload))) {
    detail.Clear();
    detail.set_message(std::string(status.message()));
  }
  return detail;
}

absl::Status WithReason(absl::Status status, v1::Reason reason) {
  if (status.ok() || status.GetPayload(kDetailUrl)) return status;
  return ErrorWith(status.code(), reason, std::string(status.message()));
}

}  // namespace latticekv
