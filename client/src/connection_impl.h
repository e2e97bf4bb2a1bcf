// The connection that talks to a server: retries over a stub. Internal to client/.
#ifndef LATTICEKV_CLIENT_SRC_CONNECTION_IMPL_H_
#define LATTICEKV_CLIENT_SRC_CONNECTION_IMPL_H_

#include <functional>
#include <memory>
#include <string>

#include "client/src/retry_loop.h"
#include "client/src/stub.h"
#include "latticekv/connection.h"

namespace latticekv {

class ConnectionImpl : public Connection {
 public:
  // Policies that are null in `options` get their defaults. `sleep` waits between attempts.
  ConnectionImpl(std::shared_ptr<Stub> stub, ClientOptions options, Sleeper sleep);

  absl::StatusOr<RegisteredLayout> RegisterLayout(const RegisterLayoutRequest& request) override;
  absl::StatusOr<PutResult> PutPrefix(const PutRequest& request) override;
  absl::StatusOr<LookupResult> Lookup(const LookupRequest& request) override;
  absl::Status Get(const GetRequest& request, GetSink& sink) override;
  absl::StatusOr<SelectionResult> Touch(const BlockSelector& blocks, int64_t ttl_ms) override;
  absl::StatusOr<SelectionResult> Pin(const BlockSelector& blocks, int64_t ttl_ms) override;
  absl::StatusOr<SelectionResult> Unpin(const BlockSelector& blocks) override;
  absl::StatusOr<SelectionResult> Delete(const BlockSelector& blocks) override;

  absl::StatusOr<SessionPage> ListSessions(const ListRequest& request) override;
  absl::StatusOr<SessionDetail> GetSession(const std::string& name_space,
                                           const std::string& name) override;
  absl::StatusOr<BlockPage> ListBlocks(const ListRequest& request) override;
  absl::StatusOr<BlockDetail> GetBlock(const std::string& name_space,
                                       const std::string& key) override;
  absl::StatusOr<ServerStats> Stats() override;
  absl::StatusOr<MissExplanation> ExplainMiss(const std::string& name_space,
                                              const std::string& key) override;
  absl::StatusOr<VerifyResult> Verify(
      const std::function<void(const VerifyResult&)>& progress) override;
  absl::Status Flush() override;
  absl::Status Drain() override;

 private:
  RetryState Retry() const { return RetryState(options_, sleep_); }

  const std::shared_ptr<Stub> stub_;
  const ClientOptions options_;
  const Sleeper sleep_;
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_CONNECTION_IMPL_H_
