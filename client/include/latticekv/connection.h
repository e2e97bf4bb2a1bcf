// What a Client talks through. Tests of code that uses a Client put a mock here
// (latticekv/mocks/mock_connection.h; client/mocks in this tree).
#ifndef LATTICEKV_CONNECTION_H_
#define LATTICEKV_CONNECTION_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "latticekv/admin.h"
#include "latticekv/blocks.h"
#include "latticekv/client_options.h"
#include "latticekv/gpu_memory.h"

namespace latticekv {

// Methods mean what Client's methods of the same name say. Implementations are thread-safe.
class Connection {
 public:
  virtual ~Connection() = default;

  virtual absl::StatusOr<RegisteredLayout> RegisterLayout(const RegisterLayoutRequest& request) = 0;
  virtual absl::StatusOr<std::shared_ptr<GpuCache>> OpenGpuCache(const GpuCacheSpec& spec) = 0;
  virtual absl::StatusOr<PutResult> PutPrefix(const PutRequest& request) = 0;
  virtual absl::StatusOr<std::vector<PutResult>> PutBatch(
      const std::vector<PutRequest>& requests) = 0;
  virtual absl::StatusOr<LookupResult> Lookup(const LookupRequest& request) = 0;
  virtual absl::Status Get(const GetRequest& request, GetSink& sink) = 0;
  virtual absl::StatusOr<SelectionResult> Touch(const BlockSelector& blocks, int64_t ttl_ms) = 0;
  virtual absl::StatusOr<SelectionResult> Pin(const BlockSelector& blocks, int64_t ttl_ms) = 0;
  virtual absl::StatusOr<SelectionResult> Unpin(const BlockSelector& blocks) = 0;
  virtual absl::StatusOr<SelectionResult> Delete(const BlockSelector& blocks) = 0;

  virtual absl::StatusOr<SessionPage> ListSessions(const ListRequest& request) = 0;
  virtual absl::StatusOr<SessionDetail> GetSession(const std::string& name_space,
                                                   const std::string& name) = 0;
  virtual absl::StatusOr<BlockPage> ListBlocks(const ListRequest& request) = 0;
  virtual absl::StatusOr<BlockDetail> GetBlock(const std::string& name_space,
                                               const std::string& key) = 0;
  virtual absl::StatusOr<ServerStats> Stats() = 0;
  virtual absl::StatusOr<MissExplanation> ExplainMiss(const std::string& name_space,
                                                      const std::string& key) = 0;
  virtual absl::StatusOr<VerifyResult> Verify(
      const std::function<void(const VerifyResult&)>& progress) = 0;
  virtual absl::Status Flush() = 0;
  virtual absl::Status Drain() = 0;
};

// A connection over gRPC. `address` is `unix:PATH` or `HOST:PORT`; INVALID_ARGUMENT when it is
// neither. The first call connects.
absl::StatusOr<std::shared_ptr<Connection>> MakeConnection(const std::string& address,
                                                           ClientOptions options = {});

}  // namespace latticekv

#endif  // LATTICEKV_CONNECTION_H_
