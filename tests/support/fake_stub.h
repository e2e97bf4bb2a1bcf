// A Stub that plays the server in memory, for tests of the client library.
#ifndef LATTICEKV_TESTS_SUPPORT_FAKE_STUB_H_
#define LATTICEKV_TESTS_SUPPORT_FAKE_STUB_H_

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "client/src/stub.h"
#include "core/base/mutex.h"

namespace latticekv::testing {

// What the fake server does with puts, and what it saw. Not for use while a put runs.
struct FakeServer {
  // Behaviour.
  std::map<std::string, v1::ErrorDetail> refuse;  // by content hash: acknowledged with this error
  std::deque<int> break_after;   // per stream: blocks acknowledged before UNAVAILABLE; then never
  uint32_t hold_acks_until = 0;  // acknowledge only once so many blocks are announced
  bool silent = false;           // never answers
  std::vector<v1::PutBlocksResponse> say_first;  // replies sent at the start of each stream

  std::deque<absl::Status> refuse_regions;  // what the next OpenRegion streams end with

  // What it has and saw.
  std::map<std::string, std::string> blocks;  // content hash -> payload
  std::vector<v1::PutOpen> opens;
  std::vector<v1::BlockHeader> headers;
  size_t parts = 0, largest_part = 0, bad_checksums = 0;
  uint32_t max_unacked = 0;
  uint64_t max_unacked_bytes = 0;
  std::vector<v1::OpenRegionRequest> region_requests;
  std::set<uint64_t> regions;  // that were granted; the test may take some away
  std::vector<v1::RegionPart> region_parts;
  std::atomic<int> leases{0};  // open now
};

// RPCs without a function answer UNIMPLEMENTED.
class FakeStub : public Stub {
 public:
  explicit FakeStub(FakeServer& server) : server_(server) {}

  std::function<absl::StatusOr<v1::RegisterLayoutResponse>(const v1::RegisterLayoutRequest&)>
      register_layout;
  std::function<absl::StatusOr<v1::LookupResponse>(const v1::LookupRequest&)> lookup;
  std::function<absl::StatusOr<v1::StatsResponse>()> stats;
  // Streams of GetBlocks, one for each call: messages, then the final status.
  std::deque<std::pair<std::vector<v1::GetBlocksResponse>, absl::Status>> gets;
  std::vector<v1::GetBlocksRequest> get_requests;
  int gets_cancelled = 0;

  absl::StatusOr<v1::RegisterLayoutResponse> RegisterLayout(
      const v1::RegisterLayoutRequest& request) override;
  std::unique_ptr<PutStream> PutBlocks() override;
  absl::StatusOr<v1::LookupResponse> Lookup(const v1::LookupRequest& request) override;
  std::unique_ptr<ReadStream<v1::GetBlocksResponse>> GetBlocks(
      const v1::GetBlocksRequest& request) override;
  std::unique_ptr<ReadStream<v1::RegionGrant>> OpenRegion(
      const v1::OpenRegionRequest& request) override;
  absl::StatusOr<v1::StatsResponse> Stats(const v1::StatsRequest& request) override;

  absl::StatusOr<v1::BlocksResponse> Touch(const v1::TouchRequest&) override { return Nothing(); }
  absl::StatusOr<v1::BlocksResponse> Pin(const v1::PinRequest&) override { return Nothing(); }
  absl::StatusOr<v1::BlocksResponse> Unpin(const v1::UnpinRequest&) override { return Nothing(); }
  absl::StatusOr<v1::BlocksResponse> Delete(const v1::DeleteRequest&) override { return Nothing(); }
  absl::StatusOr<v1::ListSessionsResponse> ListSessions(const v1::ListSessionsRequest&) override {
    return Nothing();
  }
  absl::StatusOr<v1::SessionDetail> GetSession(const v1::GetSessionRequest&) override {
    return Nothing();
  }
  absl::StatusOr<v1::ListBlocksResponse> ListBlocks(const v1::ListBlocksRequest&) override {
    return Nothing();
  }
  absl::StatusOr<v1::BlockDetail> GetBlock(const v1::GetBlockRequest&) override {
    return Nothing();
  }
  absl::StatusOr<v1::ExplainMissResponse> ExplainMiss(const v1::ExplainMissRequest&) override {
    return Nothing();
  }
  std::unique_ptr<ReadStream<v1::VerifyProgress>> Verify(const v1::VerifyRequest&) override {
    return nullptr;
  }
  absl::StatusOr<v1::FlushResponse> Flush(const v1::FlushRequest&) override { return Nothing(); }
  absl::StatusOr<v1::DrainResponse> Drain(const v1::DrainRequest&) override { return Nothing(); }

 private:
  static absl::Status Nothing() { return absl::UnimplementedError("the fake does not serve this"); }
  FakeServer& server_;
};

}  // namespace latticekv::testing

#endif  // LATTICEKV_TESTS_SUPPORT_FAKE_STUB_H_
