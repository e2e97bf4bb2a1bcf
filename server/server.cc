#include "server/server.h"

#include <grpc/grpc.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <sys/stat.h>

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "grpc/health/v1/health.pb.h"
#include "server/service_admin.h"
#include "server/service_cache.h"

namespace latticekv {
namespace {

constexpr char kCacheServiceName[] = "latticekv.v1.KvCache";
// Not a service: NOT_SERVING while the disk takes no writes and blocks are kept in memory only.
constexpr char kDiskTierName[] = "latticekv.v1.DiskTier";
constexpr char kGpuName[] = "latticekv.v1.Gpu";
constexpr char kAdminServiceName[] = "latticekv.v1.Admin";

void SetChannelOptions(grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(limits::kMaxMessageBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, limits::kMaxConcurrentStreams);
  // Two daemons on one port would split the clients between them.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // A small compressed message may inflate to gigabytes before any limit looks at it.
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
}

// Socket files are for the daemon's user and group.
class SocketUmask {
 public:
  SocketUmask() : old_(umask(0117)) {}
  ~SocketUmask() { umask(old_); }

 private:
  const mode_t old_;
};

// The library's last shutdown joins pollers that sleep for up to ten seconds (gRPC 1.51), so this
// process keeps it open; the kernel cleans up.
void KeepGrpcOpen() {
  static const bool opened = (grpc_init(), true);
  static_cast<void>(opened);
}

}  // namespace

struct Server::Grpc {
  explicit Grpc(CacheEngine& engine) : cache(engine), admin(engine) {}
  CacheService cache;
  AdminService admin;
  std::unique_ptr<grpc::Server> server;
  bool stopped = false;
};

Server::Server() = default;

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerConfig& given) {
  ServerConfig config = given;
  if (config.listen.empty()) config.listen = DefaultListen();
  auto server = std::unique_ptr<Server>(new Server());
  LKV_ASSIGN_OR_RETURN(server->engine_, CacheEngine::Create(config));
  server->grpc_ = std::make_unique<Grpc>(*server->engine_);

  KeepGrpcOpen();
  // Links the health service's descriptor, so that reflection can describe it.
  grpc::health::v1::HealthCheckRequest::descriptor();
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  SetChannelOptions(builder);
  std::vector<ListenAddress> addresses;
  std::vector<int> ports(config.listen.size(), -1);  // the builder writes here
  for (size_t i = 0; i < config.listen.size(); ++i) {
    LKV_ASSIGN_OR_RETURN(ListenAddress address, ParseListenAddress(config.listen[i]));
    // gRPC takes a socket path over even while another daemon serves it.
    if (address.is_unix) LKV_RETURN_IF_ERROR(RemoveStaleSocket(address.path));
    builder.AddListeningPort(FormatListenAddress(address), grpc::InsecureServerCredentials(),
                             &ports[i]);
    addresses.push_back(std::move(address));
  }
  builder.RegisterService(&server->grpc_->cache);
  builder.RegisterService(&server->grpc_->admin);
  {
    const SocketUmask mask;
    server->grpc_->server = builder.BuildAndStart();
  }
  for (size_t i = 0; i < addresses.size(); ++i) {
    if (!server->grpc_->server || ports[i] <= 0) {
      if (ports[i] > 0) continue;
      return absl::FailedPreconditionError(
          absl::StrCat("cannot listen on ", config.listen[i],
                       "; is the address in use, or not this host's, or its directory missing?"));
    }
    if (!addresses[i].is_unix) addresses[i].port = ports[i];
    server->addresses_.push_back(FormatListenAddress(addresses[i]));
  }
  if (!server->grpc_->server) return absl::InternalError("gRPC could not start the server");
  if (auto* health = server->grpc_->server->GetHealthCheckService()) {
    health->SetServingStatus(kCacheServiceName, true);
    health->SetServingStatus(kAdminServiceName, true);
    if (!config.disk_dir.empty()) {
      server->engine_->SetDiskListener(
          [health](bool ok) { health->SetServingStatus(kDiskTierName, ok); });
    }
    if (server->engine_->gpu() != nullptr) {
      health->SetServingStatus(kGpuName, true);
      server->engine_->SetGpuOffListener([health] { health->SetServingStatus(kGpuName, false); });
    }
  }
  server->engine_->start_phases().Done("listening");
  return server;
}

Server::~Server() { Stop(0); }

void Server::Drain() { Stop(engine_->config().drain_timeout_ms); }

void Server::Stop(int64_t timeout_ms) {
  if (!grpc_ || !grpc_->server || grpc_->stopped) return;
  grpc_->stopped = true;
  engine_->StartDrain();
  engine_->SetDiskListener({});
  engine_->SetGpuOffListener({});
  if (auto* health = grpc_->server->GetHealthCheckService()) health->SetServingStatus(false);
  grpc_->server->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(timeout_ms));
  grpc_->server->Wait();
}

}  // namespace latticekv
