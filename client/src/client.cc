#include "latticekv/client.h"

#include "client/src/prefix_sink.h"
#include "core/base/status_macros.h"

namespace latticekv {

absl::StatusOr<StoredPrefix> Client::GetPrefix(const GetRequest& request) {
  GetRequest any_order = request;
  any_order.unordered_layers = true;
  PrefixSink sink(request);
  LKV_RETURN_IF_ERROR(connection_->Get(any_order, sink));
  return sink.Take();
}

absl::StatusOr<Client> Connect(const std::string& address, ClientOptions options) {
  LKV_ASSIGN_OR_RETURN(std::shared_ptr<Connection> connection,
                       MakeConnection(address, std::move(options)));
  return Client(std::move(connection));
}

}  // namespace latticekv
