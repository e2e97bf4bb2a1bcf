// The RPCs as they are on the wire, one attempt each, behind a seam for tests. Internal to client/.
#ifndef LATTICEKV_CLIENT_SRC_STUB_H_
#define LATTICEKV_CLIENT_SRC_STUB_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/src/part_buffer.h"
#include "latticekv/client_options.h"
#include "latticekv/v1/admin_service.pb.h"
#include "latticekv/v1/cache_service.pb.h"

namespace latticekv {

// One PutBlocks stream. One thread may write while another reads; Cancel is thread-safe.
class PutStream {
 public:
  virtual ~PutStream() = default;
  // False: the stream is broken; Finish says why.
  virtual bool Write(const v1::PutBlocksRequest& message) = 0;
  // Writes a BlockPart; streams over gRPC do so without copying `data`.
  virtual bool WritePart(uint32_t index, uint64_t offset, uint32_t crc32c, const PartBuffer& data) {
    v1::PutBlocksRequest message;
    message.mutable_part()->set_index(index);
    message.mutable_part()->set_offset(offset);
    message.mutable_part()->set_crc32c(crc32c);
    message.mutable_part()->set_data(*data);
    return Write(message);
  }
  virtual void WritesDone() = 0;
  // False: no more messages.
  virtual bool Read(v1::PutBlocksResponse& message) = 0;
  // After Read returned false.
  virtual absl::Status Finish() = 0;
  virtual void Cancel() = 0;
};

// A stream that only the server writes.
template <typename Response>
class ReadStream {
 public:
  virtual ~ReadStream() = default;
  virtual bool Read(Response& message) = 0;
  virtual absl::Status Finish() = 0;
  virtual void Cancel() = 0;
};

// Thread-safe. Errors carry the server's ErrorDetail.
class Stub {
 public:
  virtual ~Stub() = default;
  // Whether there is a connection now.
  virtual bool Connected() { return true; }
  // Connects, for at most `max_ms`; true when there is a connection. A thread that sleeps instead
  // keeps the transport from noticing that the server is back.
  virtual bool WaitConnected(int64_t /*max_ms*/) { return true; }
  virtual absl::StatusOr<v1::RegisterLayoutResponse> RegisterLayout(
      const v1::RegisterLayoutRequest& request) = 0;
  virtual absl::StatusOr<v1::GetProfileResponse> GetProfile(
      const v1::GetProfileRequest& /*request*/) {
    return absl::UnimplementedError("this stub has no profiles");
  }
  virtual std::unique_ptr<PutStream> PutBlocks() = 0;
  virtual absl::StatusOr<v1::LookupResponse> Lookup(const v1::LookupRequest& request) = 0;
  virtual std::unique_ptr<ReadStream<v1::GetBlocksResponse>> GetBlocks(
      const v1::GetBlocksRequest& request) = 0;
  // Null: this stub has no shared memory.
  virtual std::unique_ptr<ReadStream<v1::RegionGrant>> OpenRegion(
      const v1::OpenRegionRequest& request) {
    return nullptr;
  }
  virtual absl::StatusOr<v1::BlocksResponse> Touch(const v1::TouchRequest& request) = 0;
  virtual absl::StatusOr<v1::BlocksResponse> Pin(const v1::PinRequest& request) = 0;
  virtual absl::StatusOr<v1::BlocksResponse> Unpin(const v1::UnpinRequest& request) = 0;
  virtual absl::StatusOr<v1::BlocksResponse> Delete(const v1::DeleteRequest& request) = 0;

  virtual absl::StatusOr<v1::ListSessionsResponse> ListSessions(
      const v1::ListSessionsRequest& request) = 0;
  virtual absl::StatusOr<v1::SessionDetail> GetSession(const v1::GetSessionRequest& request) = 0;
  virtual absl::StatusOr<v1::ListBlocksResponse> ListBlocks(
      const v1::ListBlocksRequest& request) = 0;
  virtual absl::StatusOr<v1::BlockDetail> GetBlock(const v1::GetBlockRequest& request) = 0;
  virtual absl::StatusOr<v1::StatsResponse> Stats(const v1::StatsRequest& request) = 0;
  virtual absl::StatusOr<v1::ExplainMissResponse> ExplainMiss(
      const v1::ExplainMissRequest& request) = 0;
  virtual std::unique_ptr<ReadStream<v1::VerifyProgress>> Verify(
      const v1::VerifyRequest& request) = 0;
  virtual absl::StatusOr<v1::FlushResponse> Flush(const v1::FlushRequest& request) = 0;
  virtual absl::StatusOr<v1::DrainResponse> Drain(const v1::DrainRequest& request) = 0;
};

// A stub over a gRPC channel; INVALID_ARGUMENT unless `address` is `unix:PATH` or `HOST:PORT`.
absl::StatusOr<std::shared_ptr<Stub>> MakeGrpcStub(const std::string& address,
                                                   const ClientOptions& options);

// True for addresses that can only be on this host: unix sockets and loopback.
bool IsLocalAddress(const std::string& address);

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_STUB_H_
