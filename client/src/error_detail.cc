#include "latticekv/error_detail.h"

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "latticekv/v1/blocks.pb.h"

namespace latticekv {
namespace {

constexpr std::string_view kReasonPrefix = "REASON_";

absl::string_view DetailUrl() { return {kErrorDetailUrl.data(), kErrorDetailUrl.size()}; }

absl::StatusCode CodeOf(ErrorReason reason) {
  switch (reason) {
    case ErrorReason::kNotStored:
    case ErrorReason::kExpired:
    case ErrorReason::kOtherLayout:
    case ErrorReason::kEvictedTokens:
    case ErrorReason::kQualityBelowBound:
      return absl::StatusCode::kNotFound;
    case ErrorReason::kUnknownLayout:
    case ErrorReason::kProfileMissing:
      return absl::StatusCode::kFailedPrecondition;
    case ErrorReason::kCorrupt:
      return absl::StatusCode::kDataLoss;
    case ErrorReason::kLimit:
    case ErrorReason::kMemoryFull:
      return absl::StatusCode::kResourceExhausted;
    case ErrorReason::kBadPayload:
      return absl::StatusCode::kInvalidArgument;
    case ErrorReason::kDisk:
    case ErrorReason::kGpu:
    case ErrorReason::kRegionGone:
      return absl::StatusCode::kFailedPrecondition;
    case ErrorReason::kDraining:
      return absl::StatusCode::kUnavailable;
    case ErrorReason::kUnspecified:
      break;
  }
  return absl::StatusCode::kUnknown;
}

}  // namespace

std::string ErrorReasonName(ErrorReason reason) {
  const int number = static_cast<int>(reason);
  if (!v1::Reason_IsValid(number)) return absl::StrCat("REASON_", number);
  return v1::Reason_Name(static_cast<v1::Reason>(number)).substr(kReasonPrefix.size());
}

std::optional<ErrorDetail> GetErrorDetail(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(DetailUrl());
  if (!payload) return std::nullopt;
  v1::ErrorDetail proto;
  if (!proto.ParseFromString(std::string(*payload))) return std::nullopt;
  return ErrorDetail{static_cast<ErrorReason>(proto.reason()), proto.limit(), proto.message()};
}

absl::Status WithErrorDetail(absl::Status status, const ErrorDetail& detail) {
  if (status.ok()) return status;
  v1::ErrorDetail proto;
  proto.set_reason(static_cast<v1::Reason>(detail.reason));
  proto.set_limit(detail.limit);
  proto.set_message(detail.message);
  status.SetPayload(DetailUrl(), absl::Cord(proto.SerializeAsString()));
  return status;
}

absl::Status StatusFromDetail(const ErrorDetail& detail) {
  const std::string message =
      detail.message.empty() ? ErrorReasonName(detail.reason) : detail.message;
  return WithErrorDetail(absl::Status(CodeOf(detail.reason), message), detail);
}

}  // namespace latticekv
