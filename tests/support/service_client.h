// A bare client of the service for tests: one message at a time, nothing hidden. gRPC stays in the
// .cc.
#ifndef LATTICEKV_TESTS_SUPPORT_SERVICE_CLIENT_H_
#define LATTICEKV_TESTS_SUPPORT_SERVICE_CLIENT_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "latticekv/v1/admin_service.pb.h"
#include "latticekv/v1/cache_service.pb.h"

namespace latticekv::testing {

// The end of a call: code, sentence, typed detail.
struct CallStatus {
  absl::StatusCode code = absl::StatusCode::kOk;
  std::string message;
  v1::ErrorDetail detail;
  bool ok() const { return code == absl::StatusCode::kOk; }
};

template <typename Response>
struct Called {
  CallStatus status;
  Response response;
};

// One PutBlocks stream. Used from one thread.
class PutCall {
 public:
  virtual ~PutCall() = default;
  virtual bool Write(const v1::PutBlocksRequest& request) = 0;
  // False at the end of the stream.
  virtual bool Read(v1::PutBlocksResponse* response) = 0;
  virtual void WritesDone() = 0;
  virtual CallStatus Finish() = 0;
  virtual void Cancel() = 0;

  bool WriteOpen(const v1::PutOpen& open);
  bool WriteHeader(const v1::BlockHeader& header);
  // With the right checksum.
  bool WritePart(uint32_t index, uint64_t offset, const std::string& data);
};

// One OpenRegion stream: the lease lasts until the object ends.
class RegionCall {
 public:
  virtual ~RegionCall() = default;
  virtual bool Read(v1::RegionGrant* grant) = 0;
  virtual CallStatus Finish() = 0;
};

// One GetBlocks stream.
class GetCall {
 public:
  virtual ~GetCall() = default;
  virtual bool Read(v1::GetBlocksResponse* response) = 0;
  virtual CallStatus Finish() = 0;
  virtual void Cancel() = 0;
};

class ServiceClient {
 public:
  static std::unique_ptr<ServiceClient> Connect(const std::string& address);
  virtual ~ServiceClient() = default;

  virtual std::unique_ptr<PutCall> PutBlocks() = 0;
  virtual std::unique_ptr<GetCall> GetBlocks(const v1::GetBlocksRequest& request) = 0;
  virtual std::unique_ptr<RegionCall> OpenRegion(const v1::OpenRegionRequest& request) = 0;
  virtual Called<v1::RegisterLayoutResponse> RegisterLayout(const v1::RegisterLayoutRequest&) = 0;
  virtual Called<v1::GetProfileResponse> GetProfile(const v1::GetProfileRequest&) = 0;
  virtual Called<v1::LookupResponse> Lookup(const v1::LookupRequest&) = 0;
  virtual Called<v1::BlocksResponse> Touch(const v1::TouchRequest&) = 0;
  virtual Called<v1::BlocksResponse> Pin(const v1::PinRequest&) = 0;
  virtual Called<v1::BlocksResponse> Unpin(const v1::UnpinRequest&) = 0;
  virtual Called<v1::BlocksResponse> Delete(const v1::DeleteRequest&) = 0;
  virtual Called<v1::ListSessionsResponse> ListSessions(const v1::ListSessionsRequest&) = 0;
  virtual Called<v1::SessionDetail> GetSession(const v1::GetSessionRequest&) = 0;
  virtual Called<v1::ListBlocksResponse> ListBlocks(const v1::ListBlocksRequest&) = 0;
  virtual Called<v1::BlockDetail> GetBlock(const v1::GetBlockRequest&) = 0;
  virtual Called<v1::StatsResponse> Stats() = 0;
  virtual Called<v1::ExplainMissResponse> ExplainMiss(const v1::ExplainMissRequest&) = 0;
  // The last progress message.
  virtual Called<v1::VerifyProgress> Verify() = 0;
  virtual CallStatus Flush() = 0;
  virtual CallStatus Drain() = 0;
  // grpc.health.v1: true when `service` is serving.
  virtual Called<bool> Health(const std::string& service) = 0;
  // A Lookup whose request is gzip-compressed.
  virtual CallStatus CompressedLookup(const v1::LookupRequest&) = 0;
};

}  // namespace latticekv::testing

#endif  // LATTICEKV_TESTS_SUPPORT_SERVICE_CLIENT_H_
