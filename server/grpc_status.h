// Errors as RPCs carry them.
#ifndef LATTICEKV_SERVER_GRPC_STATUS_H_
#define LATTICEKV_SERVER_GRPC_STATUS_H_

#include <grpcpp/support/status.h>

#include "absl/status/status.h"
#include "proto/rpc_status.h"
#include "server/error_detail.h"

namespace latticekv {

// The same code and sentence, with the ErrorDetail in the status details.
inline grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const auto code = static_cast<grpc::StatusCode>(status.code());
  const v1::ErrorDetail detail = DetailOf(status);
  return grpc::Status(code, std::string(status.message()),
                      EncodeErrorDetails(static_cast<int>(code), detail));
}

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_GRPC_STATUS_H_
