// Why a call or a block failed, beyond the status code and its sentence.
#ifndef LATTICEKV_ERROR_DETAIL_H_
#define LATTICEKV_ERROR_DETAIL_H_

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace latticekv {

// Values equal those of latticekv.v1.Reason; values from a newer server are kept as they are.
enum class ErrorReason : int {
  kUnspecified = 0,
  kNotStored = 1,
  kOtherLayout = 2,
  kUnknownLayout = 3,
  kQualityBelowBound = 4,
  kEvictedTokens = 5,
  kCorrupt = 6,
  kProfileMissing = 7,
  kLimit = 8,
  kBadPayload = 9,
  kMemoryFull = 10,
  kDraining = 11,
  kExpired = 12,
  kDisk = 13,
  kGpu = 20,         // the GPU cannot read or fill this block: move it through the host
  kRegionGone = 21,  // the server has no lease of this GPU memory (any more)
};

// "NOT_STORED"; "REASON_<number>" for a value this version does not know.
std::string ErrorReasonName(ErrorReason reason);

struct ErrorDetail {
  ErrorReason reason = ErrorReason::kUnspecified;
  std::string limit;    // name of the limit that was passed (docs/limits.md); mostly empty
  std::string message;  // one sentence that says what to do
};

// URL under which a Status carries its detail as payload (a serialized latticekv.v1.ErrorDetail).
inline constexpr std::string_view kErrorDetailUrl = "type.googleapis.com/latticekv.v1.ErrorDetail";

// The detail a status of this library carries; nothing when the server gave none.
std::optional<ErrorDetail> GetErrorDetail(const absl::Status& status);

// `status` with `detail` attached; OK statuses stay as they are.
absl::Status WithErrorDetail(absl::Status status, const ErrorDetail& detail);

// A status for `detail` with the code its reason stands for, for instance NOT_FOUND for kNotStored.
absl::Status StatusFromDetail(const ErrorDetail& detail);

}  // namespace latticekv

#endif  // LATTICEKV_ERROR_DETAIL_H_
