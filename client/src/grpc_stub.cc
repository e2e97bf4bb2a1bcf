#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdlib>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "client/src/stub.h"
#include "core/base/limits.h"
#include "latticekv/error_detail.h"
#include "latticekv/v1/admin_service.grpc.pb.h"
#include "latticekv/v1/cache_service.grpc.pb.h"
#include "proto/part_wire.h"
#include "proto/rpc_status.h"

namespace latticekv {
namespace {

constexpr int kReconnectBackoffMs = 50;
constexpr int kMaxReconnectBackoffMs = 2'000;
constexpr int kMinConnectTimeoutMs = 5'000;

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  // gRPC and absl share the numbers of their codes.
  absl::Status out(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  if (const auto detail = DecodeErrorDetails(status.error_details())) {
    out = WithErrorDetail(std::move(out), {static_cast<ErrorReason>(detail->reason()),
                                           detail->limit(), detail->message()});
  }
  return out;
}

// Writes bytes, so that parts go out as they lie in memory; on the wire it is the same protobuf.
class GrpcPutStream : public PutStream {
 public:
  GrpcPutStream(grpc::ChannelInterface* channel, const grpc::internal::RpcMethod& method)
      : stream_(grpc::internal::ClientReaderWriterFactory<
                grpc::ByteBuffer, v1::PutBlocksResponse>::Create(channel, method, &context_)) {}
  bool Write(const v1::PutBlocksRequest& message) override {
    return stream_->Write(ToByteBuffer(message));
  }
  bool WritePart(uint32_t index, uint64_t offset, uint32_t crc32c,
                 const PartBuffer& data) override {
    return stream_->Write(
        WritePutPart(index, offset, crc32c, OwningSlice(AsBytes(*data), PartBuffer(data))));
  }
  void WritesDone() override { stream_->WritesDone(); }
  bool Read(v1::PutBlocksResponse& message) override { return stream_->Read(&message); }
  absl::Status Finish() override { return FromGrpc(stream_->Finish()); }
  void Cancel() override { context_.TryCancel(); }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<grpc::ByteBuffer, v1::PutBlocksResponse>> stream_;
};

template <typename Response>
class GrpcReadStream : public ReadStream<Response> {
 public:
  // `start(context)` begins the RPC.
  template <typename Start>
  explicit GrpcReadStream(const Start& start) : stream_(start(&context_)) {}
  bool Read(Response& message) override { return stream_->Read(&message); }
  absl::Status Finish() override { return FromGrpc(stream_->Finish()); }
  void Cancel() override { context_.TryCancel(); }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<Response>> stream_;
};

class GrpcStub : public Stub {
 public:
  GrpcStub(const std::shared_ptr<grpc::Channel>& channel, int64_t timeout_ms)
      : channel_(channel),
        put_blocks_("/latticekv.v1.KvCache/PutBlocks", grpc::internal::RpcMethod::BIDI_STREAMING,
                    channel),
        cache_(v1::KvCache::NewStub(channel)),
        admin_(v1::Admin::NewStub(channel)),
        timeout_ms_(timeout_ms) {}

  bool Connected() override { return channel_->GetState(false) == GRPC_CHANNEL_READY; }
  bool WaitConnected(int64_t max_ms) override {
    return channel_->WaitForConnected(std::chrono::system_clock::now() +
                                      std::chrono::milliseconds(max_ms));
  }
  absl::StatusOr<v1::RegisterLayoutResponse> RegisterLayout(
      const v1::RegisterLayoutRequest& request) override {
    return Call(*cache_, &v1::KvCache::Stub::RegisterLayout, request);
  }
  absl::StatusOr<v1::GetProfileResponse> GetProfile(const v1::GetProfileRequest& request) override {
    return Call(*cache_, &v1::KvCache::Stub::GetProfile, request);
  }
  std::unique_ptr<PutStream> PutBlocks() override {
    return std::make_unique<GrpcPutStream>(channel_.get(), put_blocks_);
  }
  absl::StatusOr<v1::LookupResponse> Lookup(const v1::LookupRequest& request) override {
    return Call(*cache_, &v1::KvCache::Stub::Lookup, request);
  }
  std::unique_ptr<ReadStream<v1::GetBlocksResponse>> GetBlocks(
      const v1::GetBlocksRequest& request) override {
    return std::make_unique<GrpcReadStream<v1::GetBlocksResponse>>(
        [&](grpc::ClientContext* context) { return cache_->GetBlocks(context, request); });
  }
  std::unique_ptr<ReadStream<v1::RegionGrant>> OpenRegion(
      const v1::OpenRegionRequest& request) override {
    return std::make_unique<GrpcReadStream<v1::RegionGrant>>(
        [&](grpc::ClientContext* context) { return cache_->OpenRegion(context, request); });
  }
  absl::StatusOr<v1::BlocksResponse> Touch(const v1::TouchRequest& request) override {
    return Call(*cache_, &v1::KvCache::Stub::Touch, request);
  }
  absl::StatusOr<v1::BlocksResponse> Pin(const v1::PinRequest& request) override {
    return Call(*cache_, &v1::KvCache::Stub::Pin, request);
  }
  absl::StatusOr<v1::BlocksResponse> Unpin(const v1::UnpinRequest& request) override {
    return Call(*cache_, &v1::KvCache::Stub::Unpin, request);
  }
  absl::StatusOr<v1::BlocksResponse> Delete(const v1::DeleteRequest& request) override {
    return Call(*cache_, &v1::KvCache::Stub::Delete, request);
  }
  absl::StatusOr<v1::ListSessionsResponse> ListSessions(
      const v1::ListSessionsRequest& request) override {
    return Call(*admin_, &v1::Admin::Stub::ListSessions, request);
  }
  absl::StatusOr<v1::SessionDetail> GetSession(const v1::GetSessionRequest& request) override {
    return Call(*admin_, &v1::Admin::Stub::GetSession, request);
  }
  absl::StatusOr<v1::ListBlocksResponse> ListBlocks(const v1::ListBlocksRequest& request) override {
    return Call(*admin_, &v1::Admin::Stub::ListBlocks, request);
  }
  absl::StatusOr<v1::BlockDetail> GetBlock(const v1::GetBlockRequest& request) override {
    return Call(*admin_, &v1::Admin::Stub::GetBlock, request);
  }
  absl::StatusOr<v1::StatsResponse> Stats(const v1::StatsRequest& request) override {
    return Call(*admin_, &v1::Admin::Stub::Stats, request);
  }
  absl::StatusOr<v1::ExplainMissResponse> ExplainMiss(
      const v1::ExplainMissRequest& request) override {
    return Call(*admin_, &v1::Admin::Stub::ExplainMiss, request);
  }
  std::unique_ptr<ReadStream<v1::VerifyProgress>> Verify(
      const v1::VerifyRequest& request) override {
    return std::make_unique<GrpcReadStream<v1::VerifyProgress>>(
        [&](grpc::ClientContext* context) { return admin_->Verify(context, request); });
  }
  absl::StatusOr<v1::FlushResponse> Flush(const v1::FlushRequest& request) override {
    return Call(*admin_, &v1::Admin::Stub::Flush, request);
  }
  absl::StatusOr<v1::DrainResponse> Drain(const v1::DrainRequest& request) override {
    return Call(*admin_, &v1::Admin::Stub::Drain, request);
  }

 private:
  template <typename Service, typename Request, typename Response>
  absl::StatusOr<Response> Call(Service& service,
                                grpc::Status (Service::*method)(grpc::ClientContext*,
                                                                const Request&, Response*),
                                const Request& request) const {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(timeout_ms_));
    Response response;
    absl::Status status = FromGrpc((service.*method)(&context, request, &response));
    if (!status.ok()) return status;
    return response;
  }

  const std::shared_ptr<grpc::Channel> channel_;
  const grpc::internal::RpcMethod put_blocks_;
  std::unique_ptr<v1::KvCache::Stub> cache_;
  std::unique_ptr<v1::Admin::Stub> admin_;
  int64_t timeout_ms_;
};

absl::Status CheckAddress(const std::string& address) {
  const auto wrong = [&](const std::string& why) {
    return absl::InvalidArgumentError(
        absl::StrCat("address '", address, "': ", why, "; use unix:PATH or HOST:PORT"));
  };
  constexpr std::string_view kUnix = "unix:";
  if (address.starts_with(kUnix)) {
    return address.size() > kUnix.size() ? absl::OkStatus() : wrong("the path is missing");
  }
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0) return wrong("there is no HOST:PORT");
  int port = 0;
  if (!absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 1 || port > 65535) {
    return wrong("the port is not a number from 1 to 65535");
  }
  return absl::OkStatus();
}

}  // namespace

bool IsLocalAddress(const std::string& address) {
  for (const char* prefix : {"unix:", "127.", "localhost:", "[::1]:"}) {
    if (address.starts_with(prefix)) return true;
  }
  return false;
}

absl::StatusOr<std::shared_ptr<Stub>> MakeGrpcStub(const std::string& address,
                                                   const ClientOptions& options) {
  if (absl::Status status = CheckAddress(address); !status.ok()) return status;
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(static_cast<int>(limits::kMaxReplyBytes));
  // A compressed message could expand to any size before it is looked at.
  arguments.SetInt(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1u << GRPC_COMPRESS_NONE);
  // gRPC would wait a second before it connects again; meanwhile every retry fails at once.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kReconnectBackoffMs);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kMinConnectTimeoutMs);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kMaxReconnectBackoffMs);
  // Local traffic through a proxy would never arrive.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // A channel of its own: a worker's puts and gets should not queue behind another client's.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  auto channel = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  return std::make_shared<GrpcStub>(channel, options.rpc_timeout_ms);
}

}  // namespace latticekv
