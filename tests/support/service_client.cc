#include "tests/support/service_client.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include "core/base/bytes.h"
#include "core/base/crc32c.h"
#include "core/base/limits.h"
#include "grpc/health/v1/health.pb.h"
#include "latticekv/v1/admin_service.grpc.pb.h"
#include "latticekv/v1/cache_service.grpc.pb.h"
#include "proto/rpc_status.h"

namespace latticekv::testing {
namespace {

CallStatus FromGrpc(const grpc::Status& status) {
  CallStatus out;
  out.code = static_cast<absl::StatusCode>(status.error_code());
  out.message = status.error_message();
  if (auto detail = DecodeErrorDetails(status.error_details())) out.detail = *detail;
  return out;
}

class PutCallImpl final : public PutCall {
 public:
  explicit PutCallImpl(v1::KvCache::Stub& stub) : stream_(stub.PutBlocks(&context_)) {}
  ~PutCallImpl() override {
    if (finished_) return;
    context_.TryCancel();
    Finish();
  }
  bool Write(const v1::PutBlocksRequest& request) override { return stream_->Write(request); }
  bool Read(v1::PutBlocksResponse* response) override { return stream_->Read(response); }
  void WritesDone() override { stream_->WritesDone(); }
  CallStatus Finish() override {
    finished_ = true;
    return FromGrpc(stream_->Finish());
  }
  void Cancel() override { context_.TryCancel(); }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::PutBlocksRequest, v1::PutBlocksResponse>> stream_;
  bool finished_ = false;
};

class RegionCallImpl final : public RegionCall {
 public:
  RegionCallImpl(v1::KvCache::Stub& stub, const v1::OpenRegionRequest& request)
      : stream_(stub.OpenRegion(&context_, request)) {}
  ~RegionCallImpl() override {
    if (finished_) return;
    context_.TryCancel();
    Finish();
  }
  bool Read(v1::RegionGrant* grant) override { return stream_->Read(grant); }
  CallStatus Finish() override {
    finished_ = true;
    return FromGrpc(stream_->Finish());
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::RegionGrant>> stream_;
  bool finished_ = false;
};

class GetCallImpl final : public GetCall {
 public:
  GetCallImpl(v1::KvCache::Stub& stub, const v1::GetBlocksRequest& request)
      : stream_(stub.GetBlocks(&context_, request)) {}
  ~GetCallImpl() override {
    if (finished_) return;
    context_.TryCancel();
    Finish();
  }
  bool Read(v1::GetBlocksResponse* response) override { return stream_->Read(response); }
  CallStatus Finish() override {
    finished_ = true;
    return FromGrpc(stream_->Finish());
  }
  void Cancel() override { context_.TryCancel(); }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::GetBlocksResponse>> stream_;
  bool finished_ = false;
};

grpc::ByteBuffer ToBuffer(const std::string& bytes) {
  grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

class ServiceClientImpl final : public ServiceClient {
 public:
  explicit ServiceClientImpl(std::shared_ptr<grpc::Channel> channel)
      : channel_(channel),
        cache_(v1::KvCache::NewStub(channel)),
        admin_(v1::Admin::NewStub(channel)) {}

  std::unique_ptr<PutCall> PutBlocks() override { return std::make_unique<PutCallImpl>(*cache_); }
  std::unique_ptr<GetCall> GetBlocks(const v1::GetBlocksRequest& request) override {
    return std::make_unique<GetCallImpl>(*cache_, request);
  }
  std::unique_ptr<RegionCall> OpenRegion(const v1::OpenRegionRequest& request) override {
    return std::make_unique<RegionCallImpl>(*cache_, request);
  }
#define LKV_UNARY(stub, method, Request, Response)                         \
  Called<v1::Response> method(const v1::Request& request) override {       \
    grpc::ClientContext context;                                           \
    Called<v1::Response> out;                                              \
    out.status = FromGrpc(stub->method(&context, request, &out.response)); \
    return out;                                                            \
  }
  LKV_UNARY(cache_, RegisterLayout, RegisterLayoutRequest, RegisterLayoutResponse)
  LKV_UNARY(cache_, GetProfile, GetProfileRequest, GetProfileResponse)
  LKV_UNARY(cache_, Lookup, LookupRequest, LookupResponse)
  LKV_UNARY(cache_, Touch, TouchRequest, BlocksResponse)
  LKV_UNARY(cache_, Pin, PinRequest, BlocksResponse)
  LKV_UNARY(cache_, Unpin, UnpinRequest, BlocksResponse)
  LKV_UNARY(cache_, Delete, DeleteRequest, BlocksResponse)
  LKV_UNARY(admin_, ListSessions, ListSessionsRequest, ListSessionsResponse)
  LKV_UNARY(admin_, GetSession, GetSessionRequest, SessionDetail)
  LKV_UNARY(admin_, ListBlocks, ListBlocksRequest, ListBlocksResponse)
  LKV_UNARY(admin_, GetBlock, GetBlockRequest, BlockDetail)
  LKV_UNARY(admin_, ExplainMiss, ExplainMissRequest, ExplainMissResponse)
#undef LKV_UNARY
  Called<v1::StatsResponse> Stats() override {
    grpc::ClientContext context;
    Called<v1::StatsResponse> out;
    out.status = FromGrpc(admin_->Stats(&context, v1::StatsRequest(), &out.response));
    return out;
  }
  Called<v1::VerifyProgress> Verify() override {
    grpc::ClientContext context;
    Called<v1::VerifyProgress> out;
    auto stream = admin_->Verify(&context, v1::VerifyRequest());
    v1::VerifyProgress progress;
    while (stream->Read(&progress)) out.response = progress;
    out.status = FromGrpc(stream->Finish());
    return out;
  }
  CallStatus Flush() override {
    grpc::ClientContext context;
    v1::FlushResponse response;
    return FromGrpc(admin_->Flush(&context, v1::FlushRequest(), &response));
  }
  CallStatus Drain() override {
    grpc::ClientContext context;
    v1::DrainResponse response;
    return FromGrpc(admin_->Drain(&context, v1::DrainRequest(), &response));
  }
  // Generic, since only the messages are generated.
  Called<bool> Health(const std::string& service) override {
    grpc::GenericStub stub(channel_);
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(service);
    const grpc::ByteBuffer bytes = ToBuffer(request.SerializeAsString());
    auto call = stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", bytes, &queue);
    call->StartCall();
    grpc::ByteBuffer buffer;
    grpc::Status status;
    call->Finish(&buffer, &status, nullptr);
    void* tag;
    bool ok;
    queue.Next(&tag, &ok);
    Called<bool> out;
    out.status = FromGrpc(status);
    grpc::Slice slice;
    grpc::health::v1::HealthCheckResponse response;
    if (status.ok() && buffer.DumpToSingleSlice(&slice).ok() &&
        response.ParseFromArray(slice.begin(), static_cast<int>(slice.size()))) {
      out.response = response.status() == grpc::health::v1::HealthCheckResponse::SERVING;
    }
    return out;
  }
  CallStatus CompressedLookup(const v1::LookupRequest& request) override {
    grpc::ClientContext context;
    context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
    v1::LookupResponse response;
    return FromGrpc(cache_->Lookup(&context, request, &response));
  }

 private:
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::KvCache::Stub> cache_;
  std::unique_ptr<v1::Admin::Stub> admin_;
};

}  // namespace

bool PutCall::WriteOpen(const v1::PutOpen& open) {
  v1::PutBlocksRequest request;
  *request.mutable_open() = open;
  return Write(request);
}

bool PutCall::WriteHeader(const v1::BlockHeader& header) {
  v1::PutBlocksRequest request;
  *request.mutable_header() = header;
  return Write(request);
}

bool PutCall::WritePart(uint32_t index, uint64_t offset, const std::string& data) {
  v1::PutBlocksRequest request;
  request.mutable_part()->set_index(index);
  request.mutable_part()->set_offset(offset);
  request.mutable_part()->set_crc32c(Crc32c(AsBytes(data)));
  request.mutable_part()->set_data(data);
  return Write(request);
}

std::unique_ptr<ServiceClient> ServiceClient::Connect(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(static_cast<int>(limits::kMaxMessageBytes));
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return std::make_unique<ServiceClientImpl>(
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
}

}  // namespace latticekv::testing
