// The running service: engine, gRPC server, health and reflection.
#ifndef LATTICEKV_SERVER_SERVER_H_
#define LATTICEKV_SERVER_SERVER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/config.h"
#include "server/engine.h"

namespace latticekv {

// Thread-safe.
class Server {
 public:
  // Serves when it returns. INVALID_ARGUMENT for a bad configuration, FAILED_PRECONDITION with the
  // address when one cannot be bound.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerConfig& config);
  // Stops at once unless Drain() did before.
  ~Server();

  // Bound addresses in the order of the configuration, ports filled in.
  const std::vector<std::string>& addresses() const { return addresses_; }
  CacheEngine& engine() { return *engine_; }

  // Accepts nothing more, lets streams finish within the configured drain timeout, cancels the
  // rest. Returns when all is over. Idempotent.
  void Drain();

 private:
  struct Grpc;
  Server();
  void Stop(int64_t timeout_ms);

  std::vector<std::string> addresses_;
  std::unique_ptr<CacheEngine> engine_;
  std::unique_ptr<Grpc> grpc_;
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_SERVER_H_
