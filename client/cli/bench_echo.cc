#include "client/cli/bench_echo.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cli/bench_echo.grpc.pb.h"
#include "core/base/limits.h"

namespace latticekv {
namespace {

absl::Status FromGrpc(const grpc::Status& status) {
  return {static_cast<absl::StatusCode>(status.error_code()), status.error_message()};
}

// Answers each chunk; owns itself until gRPC is done with it.
class UploadReactor final : public grpc::ServerBidiReactor<bench::Chunk, bench::Chunk> {
 public:
  UploadReactor() { StartRead(&chunk_); }
  void OnReadDone(bool ok) override {
    if (ok) {
      StartWrite(&answer_);
    } else {
      Finish(grpc::Status::OK);
    }
  }
  void OnWriteDone(bool ok) override {
    if (ok) StartRead(&chunk_);
  }
  void OnCancel() override {}
  void OnDone() override { delete this; }

 private:
  bench::Chunk chunk_, answer_;
};

class DownloadReactor final : public grpc::ServerWriteReactor<bench::Chunk> {
 public:
  explicit DownloadReactor(const bench::DownloadRequest& request)
      : bytes_(std::min<uint64_t>(request.bytes(), limits::kMaxMessageBytes)),
        left_(request.count()) {
    Next();
  }
  void OnWriteDone(bool ok) override {
    if (ok) Next();
  }
  void OnDone() override { delete this; }

 private:
  void Next() {
    if (left_ == 0) {
      Finish(grpc::Status::OK);
      return;
    }
    --left_;
    // A fresh copy each time, as a server has that decoded the bytes just now.
    chunk_.set_data(std::string(bytes_, 'x'));
    StartWrite(&chunk_);
  }
  const size_t bytes_;
  uint32_t left_;
  bench::Chunk chunk_;
};

class EchoService final : public bench::Echo::CallbackService {
 public:
  grpc::ServerBidiReactor<bench::Chunk, bench::Chunk>* Upload(
      grpc::CallbackServerContext*) override {
    return new UploadReactor();
  }
  grpc::ServerWriteReactor<bench::Chunk>* Download(grpc::CallbackServerContext*,
                                                   const bench::DownloadRequest* request) override {
    return new DownloadReactor(*request);
  }
};

class EchoServerImpl : public EchoServer {
 public:
  ~EchoServerImpl() override {
    if (server_) server_->Shutdown(std::chrono::system_clock::now());
  }
  bool Start(const std::string& address) {
    int port = 0;
    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(limits::kMaxMessageBytes);
    builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    address_ = address;
    if (!address.starts_with("unix:")) {
      address_ = absl::StrCat(address.substr(0, address.rfind(':')), ":", port);
    }
    return server_ != nullptr && port > 0;
  }
  const std::string& address() const override { return address_; }

 private:
  EchoService service_;
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
};

class EchoClientImpl : public EchoClient {
 public:
  explicit EchoClientImpl(const std::string& address) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(static_cast<int>(limits::kMaxReplyBytes));
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    stub_ = bench::Echo::NewStub(
        grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
  }

  absl::Status Upload(const std::vector<size_t>& sizes) override {
    grpc::ClientContext context;
    auto stream = stub_->Upload(&context);
    size_t answers = 0;
    std::thread reader([&] {
      bench::Chunk answer;
      while (stream->Read(&answer)) ++answers;
    });
    bench::Chunk chunk;
    for (const size_t size : sizes) {
      chunk.mutable_data()->resize(size, 'x');
      if (!stream->Write(chunk)) break;
    }
    stream->WritesDone();
    reader.join();
    const absl::Status status = FromGrpc(stream->Finish());
    if (!status.ok() || answers == sizes.size()) return status;
    return absl::InternalError("the echo did not answer every message");
  }

  absl::Status Download(const std::vector<size_t>& sizes) override {
    // Runs of equal sizes, one stream each.
    for (size_t i = 0; i < sizes.size();) {
      size_t end = i;
      while (end < sizes.size() && sizes[end] == sizes[i]) ++end;
      grpc::ClientContext context;
      bench::DownloadRequest request;
      request.set_count(static_cast<uint32_t>(end - i));
      request.set_bytes(sizes[i]);
      auto stream = stub_->Download(&context, request);
      bench::Chunk chunk;
      size_t bytes = 0;
      while (stream->Read(&chunk)) bytes += chunk.data().size();
      if (absl::Status status = FromGrpc(stream->Finish()); !status.ok()) return status;
      if (bytes != sizes[i] * (end - i)) return absl::InternalError("the echo sent too little");
      i = end;
    }
    return absl::OkStatus();
  }

 private:
  std::unique_ptr<bench::Echo::Stub> stub_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<EchoServer>> EchoServer::Start(const std::string& address) {
  auto server = std::make_unique<EchoServerImpl>();
  if (!server->Start(address)) {
    return absl::FailedPreconditionError(absl::StrCat("the echo cannot listen on ", address));
  }
  return server;
}

std::unique_ptr<EchoClient> EchoClient::Connect(const std::string& address) {
  return std::make_unique<EchoClientImpl>(address);
}

}  // namespace latticekv
