// The client of a LatticeKV daemon.
//
//   auto client = latticekv::Connect("unix:/run/latticekv/latticekv.sock");
//   auto layout = client->RegisterLayout({.name_space = "chat", .layout = my_layout});
//   auto put = client->PutPrefix({.layout = *layout, .tokens = ids, .planes = views});
//   auto prefix = client->Lookup({.layout = *layout, .tokens = ids});
#ifndef LATTICEKV_CLIENT_H_
#define LATTICEKV_CLIENT_H_

#include <functional>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "latticekv/connection.h"

namespace latticekv {

// A value that shares its connection with its copies. Thread-safe. Errors of the server carry an
// ErrorDetail (error_detail.h); calls that find the server UNAVAILABLE are repeated as
// ClientOptions say.
class Client {
 public:
  explicit Client(std::shared_ptr<Connection> connection) : connection_(std::move(connection)) {}

  // Makes a layout, and optionally its model profile, known to the server. Idempotent.
  absl::StatusOr<RegisteredLayout> RegisterLayout(const RegisterLayoutRequest& request) {
    return connection_->RegisterLayout(request);
  }

  // Hands a cache in GPU memory over to the daemon, which must be on this host and be reached by
  // its unix socket (FAILED_PRECONDITION otherwise, and for memory of another device than the
  // daemon's), for as long as the object lives. UNIMPLEMENTED when the daemon uses no GPU: then all
  // goes through the host; INVALID_ARGUMENT when the handle is none or planes pass their memory;
  // RESOURCE_EXHAUSTED beyond kMaxRegions caches. Register the layout first.
  absl::StatusOr<std::shared_ptr<GpuCache>> OpenGpuCache(const GpuCacheSpec& spec) {
    return connection_->OpenGpuCache(spec);
  }

  // Stores the cache of a token sequence: cuts it into chunks, skips those the server has and sends
  // the rest. An error means that the request was wrong or the stream broke for good; a block that
  // the server refused has its own status (PutResult::status() gives the first). Idempotent: after
  // an error, put again.
  absl::StatusOr<PutResult> PutPrefix(const PutRequest& request) {
    return connection_->PutPrefix(request);
  }

  // Several puts over one stream, for many small ones. They share layout, session, preset,
  // durability, life time and the side that compresses; the first one's timeout and token count for
  // all. Results are in the order of the requests.
  absl::StatusOr<std::vector<PutResult>> PutBatch(const std::vector<PutRequest>& requests) {
    return connection_->PutBatch(requests);
  }

  // The same calls in threads of their own. What a request refers to must live until its future is
  // ready; the future's destructor waits for that.
  std::future<absl::StatusOr<PutResult>> AsyncPutPrefix(PutRequest request) {
    return std::async(std::launch::async, [connection = connection_, request = std::move(request)] {
      return connection->PutPrefix(request);
    });
  }
  std::future<absl::Status> AsyncGet(GetRequest request, GetSink& sink) {
    return std::async(std::launch::async, [connection = connection_, request = std::move(request),
                                           &sink] { return connection->Get(request, sink); });
  }
  std::future<absl::StatusOr<LookupResult>> AsyncLookup(LookupRequest request) {
    return std::async(std::launch::async, [connection = connection_, request = std::move(request)] {
      return connection->Lookup(request);
    });
  }

  // The longest stored prefix of a token sequence.
  absl::StatusOr<LookupResult> Lookup(const LookupRequest& request) {
    return connection_->Lookup(request);
  }

  // Reads blocks into the memory `sink` names, layer by layer, so that the first layers can be used
  // while the last are on their way.
  absl::Status Get(const GetRequest& request, GetSink& sink) {
    return connection_->Get(request, sink);
  }
  // Reads blocks into memory it allocates.
  absl::StatusOr<StoredPrefix> GetPrefix(const GetRequest& request);
  // Reads blocks into the GPU memory that request.target names, and says what became of each.
  absl::StatusOr<PlacedBlocks> GetToGpu(const GetRequest& request);

  // Marks blocks as used; gives them a new time to live unless `ttl_ms` is 0.
  absl::StatusOr<SelectionResult> Touch(const BlockSelector& blocks, int64_t ttl_ms = 0) {
    return connection_->Touch(blocks, ttl_ms);
  }
  // Keeps blocks from being evicted, for `ttl_ms` or (0) until unpinned.
  absl::StatusOr<SelectionResult> Pin(const BlockSelector& blocks, int64_t ttl_ms = 0) {
    return connection_->Pin(blocks, ttl_ms);
  }
  absl::StatusOr<SelectionResult> Unpin(const BlockSelector& blocks) {
    return connection_->Unpin(blocks);
  }
  // Deletes blocks, or a session and those of its blocks that no other session holds.
  absl::StatusOr<SelectionResult> Delete(const BlockSelector& blocks) {
    return connection_->Delete(blocks);
  }

  // The operator's view.
  absl::StatusOr<SessionPage> ListSessions(const ListRequest& request = {}) {
    return connection_->ListSessions(request);
  }
  absl::StatusOr<SessionDetail> GetSession(const std::string& name_space, const std::string& name) {
    return connection_->GetSession(name_space, name);
  }
  absl::StatusOr<BlockPage> ListBlocks(const ListRequest& request = {}) {
    return connection_->ListBlocks(request);
  }
  absl::StatusOr<BlockDetail> GetBlock(const std::string& name_space, const std::string& key) {
    return connection_->GetBlock(name_space, key);
  }
  absl::StatusOr<ServerStats> Stats() { return connection_->Stats(); }
  absl::StatusOr<MissExplanation> ExplainMiss(const std::string& name_space,
                                              const std::string& key) {
    return connection_->ExplainMiss(name_space, key);
  }
  // Reads every stored block and checks it; `progress` (may be empty) is called now and then.
  absl::StatusOr<VerifyResult> Verify(
      const std::function<void(const VerifyResult&)>& progress = {}) {
    return connection_->Verify(progress);
  }
  absl::Status Flush() { return connection_->Flush(); }
  absl::Status Drain() { return connection_->Drain(); }

 private:
  std::shared_ptr<Connection> connection_;
};

// A client of the daemon at `address`: `unix:PATH` or `HOST:PORT`.
absl::StatusOr<Client> Connect(const std::string& address, ClientOptions options = {});

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_H_
