// The yardstick of `latticekv bench service`: a plain gRPC service in this process that takes and
// gives bytes, with the channel options of the daemon and of the client library.
#ifndef LATTICEKV_CLIENT_CLI_BENCH_ECHO_H_
#define LATTICEKV_CLIENT_CLI_BENCH_ECHO_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace latticekv {

class EchoServer {
 public:
  // `address` is `unix:PATH` or `HOST:0`.
  static absl::StatusOr<std::unique_ptr<EchoServer>> Start(const std::string& address);
  virtual ~EchoServer() = default;
  virtual const std::string& address() const = 0;
};

// One worker's channel. Not thread-safe.
class EchoClient {
 public:
  static std::unique_ptr<EchoClient> Connect(const std::string& address);
  virtual ~EchoClient() = default;
  // One stream: a message of each size, each answered before the stream ends.
  virtual absl::Status Upload(const std::vector<size_t>& sizes) = 0;
  virtual absl::Status Download(const std::vector<size_t>& sizes) = 0;
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_CLI_BENCH_ECHO_H_
