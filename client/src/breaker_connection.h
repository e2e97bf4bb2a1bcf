// A connection whose server may be away: calls then cost microseconds. Internal to client/.
#ifndef LATTICEKV_CLIENT_SRC_BREAKER_CONNECTION_H_
#define LATTICEKV_CLIENT_SRC_BREAKER_CONNECTION_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/base/mutex.h"
#include "latticekv/connection.h"

namespace latticekv {

// Passes calls on until one fails because the server cannot be reached (UNAVAILABLE,
// DEADLINE_EXCEEDED of a call without a timeout of its own). From then on, until a probe succeeds,
// nothing is passed on: look-ups and gets miss, puts are dropped, a layout is registered here and
// with the server later; the operator's calls, and OpenGpuCache, fail at once.
class BreakerConnection : public Connection {
 public:
  // `probe` is called from a thread of this object.
  BreakerConnection(std::shared_ptr<Connection> inner, std::function<absl::Status()> probe,
                    int64_t probe_ms);
  ~BreakerConnection() override;

  // True while the server counts as away.
  bool open() const { return open_.load(std::memory_order_acquire); }

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
  // The result of `call()`, or UNAVAILABLE at once while the breaker is open.
  template <typename Call>
  auto Guard(const Call& call) -> decltype(call());
  // True when `status` says that the server is away; opens the breaker then.
  bool Trip(const absl::Status& status);
  void Watch();

  const std::shared_ptr<Connection> inner_;
  const std::function<absl::Status()> probe_;
  const int64_t probe_ms_;
  std::atomic<bool> open_{false};
  Mutex mutex_;
  CondVar changed_;
  bool stop_ LKV_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_BREAKER_CONNECTION_H_
