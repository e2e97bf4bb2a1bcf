// The connection that talks to a server: retries over a stub. Internal to client/.
#ifndef LATTICEKV_CLIENT_SRC_CONNECTION_IMPL_H_
#define LATTICEKV_CLIENT_SRC_CONNECTION_IMPL_H_

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "client/src/region_client.h"
#include "client/src/retry_loop.h"
#include "client/src/stub.h"
#include "core/base/mutex.h"
#include "latticekv/connection.h"

namespace latticekv {

// Waits `delay_ms`; less when a connection was lost and all are there again. Keeps them connecting
// meanwhile.
void PauseBeforeRetry(const std::vector<std::shared_ptr<Stub>>& stubs, int64_t delay_ms);

class ConnectionImpl : public Connection {
 public:
  // Policies that are null in `options` get their defaults. `sleep` waits between attempts.
  ConnectionImpl(std::shared_ptr<Stub> stub, ClientOptions options, Sleeper sleep);
  // Calls take turns on the stubs, of which there is one at least. `local`: the server may be on
  // this host, and options.shared_memory_bytes counts.
  ConnectionImpl(std::vector<std::shared_ptr<Stub>> stubs, ClientOptions options, Sleeper sleep,
                 bool local);

  // OK when the server answers, with at most `max_ms` to connect; no second attempt.
  absl::Status Probe(int64_t max_ms);

  absl::StatusOr<RegisteredLayout> RegisterLayout(const RegisterLayoutRequest& request) override;
  absl::StatusOr<std::shared_ptr<GpuCache>> OpenGpuCache(const GpuCacheSpec& spec) override;
  absl::StatusOr<PutResult> PutPrefix(const PutRequest& request) override;
  absl::StatusOr<std::vector<PutResult>> PutBatch(const std::vector<PutRequest>& requests) override;
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
  Stub& NextStub() { return *stubs_[next_stub_++ % stubs_.size()]; }
  absl::StatusOr<std::vector<PutResult>> Put(const std::vector<const PutRequest*>& requests);
  absl::StatusOr<LookupResult> LookupOnce(const LookupRequest& request);
  // Registers a layout again that a server which started anew does not know; false when it was not
  // registered through this connection or cannot be now.
  bool RegisterAgain(const RegisteredLayout& layout);
  // A profile that frames of the layout refer to: the caller's, or the server's.
  absl::StatusOr<std::shared_ptr<const ModelProfile>> FindProfile(const RegisteredLayout& layout,
                                                                  const Digest& hash);

  const std::vector<std::shared_ptr<Stub>> stubs_;
  Stub* const stub_;  // for calls that move no payload
  const ClientOptions options_;
  const Sleeper sleep_;
  std::atomic<uint32_t> next_stub_{0};
  Mutex mutex_;
  // By fingerprint and namespace.
  std::map<std::string, v1::RegisterLayoutRequest> registered_ LKV_GUARDED_BY(mutex_);
  std::map<Digest, std::shared_ptr<const ModelProfile>> profiles_ LKV_GUARDED_BY(mutex_);
  // Null: no shared memory. Gets have a region of their own, which one that is broken off takes
  // with it.
  std::unique_ptr<RegionClient> regions_, get_regions_;
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_CONNECTION_IMPL_H_
