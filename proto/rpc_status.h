// The typed detail of an RPC's error, both ways: what grpc::Status::error_details() holds.
#ifndef LATTICEKV_PROTO_RPC_STATUS_H_
#define LATTICEKV_PROTO_RPC_STATUS_H_

#include <optional>
#include <string>

#include "latticekv/v1/blocks.pb.h"

namespace latticekv {

// Serialized google.rpc.Status around `detail`, so that clients of any language decode it. `code`
// is the gRPC status code.
inline std::string EncodeErrorDetails(int code, const v1::ErrorDetail& detail) {
  v1::RpcStatus status;
  status.set_code(code);
  status.set_message(detail.message());
  status.add_details()->PackFrom(detail);
  return status.SerializeAsString();
}

// The ErrorDetail in `error_details`; nothing when there is none.
inline std::optional<v1::ErrorDetail> DecodeErrorDetails(const std::string& error_details) {
  v1::RpcStatus status;
  if (!status.ParseFromString(error_details)) return std::nullopt;
  for (const auto& any : status.details()) {
    v1::ErrorDetail detail;
    if (any.UnpackTo(&detail)) return detail;
  }
  return std::nullopt;
}

}  // namespace latticekv

#endif  // LATTICEKV_PROTO_RPC_STATUS_H_
