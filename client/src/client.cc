#include "latticekv/client.h"

#include "client/src/placed_sink.h"
#include "client/src/prefix_sink.h"
#include "core/base/status_macros.h"

namespace latticekv {

absl::StatusOr<StoredPrefix> Client::GetPrefix(const GetRequest& request) {
  if (request.target.cache != nullptr) {
    return absl::InvalidArgumentError(
        "get: GetPrefix reads into host memory; use GetToGpu, or leave the target out");
  }
  GetRequest any_order = request;
  any_order.unordered_layers = true;
  PrefixSink sink(request);
  LKV_RETURN_IF_ERROR(connection_->Get(any_order, sink));
  return sink.Take();
}

absl::StatusOr<PlacedBlocks> Client::GetToGpu(const GetRequest& request) {
  if (request.target.cache == nullptr) {
    return absl::InvalidArgumentError("get: GetToGpu needs a target; open a GPU cache");
  }
  PlacedSink sink;
  LKV_RETURN_IF_ERROR(connection_->Get(request, sink));
  return sink.Take();
}

absl::StatusOr<Client> Connect(const std::string& address, ClientOptions options) {
  LKV_ASSIGN_OR_RETURN(std::shared_ptr<Connection> connection,
                       MakeConnection(address, std::move(options)));
  return Client(std::move(connection));
}

}  // namespace latticekv
