#include "server/service_admin.h"

#include "server/admin_views.h"
#include "server/error_detail.h"
#include "server/grpc_status.h"
#include "server/unary.h"
#include "server/verify_stream.h"
#include "spdlog/spdlog.h"

namespace latticekv {

grpc::ServerUnaryReactor* AdminService::ListSessions(grpc::CallbackServerContext* context,
                                                     const v1::ListSessionsRequest* request,
                                                     v1::ListSessionsResponse* response) {
  return Answer(context, latticekv::ListSessions(engine_, *request), response);
}

grpc::ServerUnaryReactor* AdminService::GetSession(grpc::CallbackServerContext* context,
                                                   const v1::GetSessionRequest* request,
                                                   v1::SessionDetail* response) {
  return Answer(context, latticekv::GetSession(engine_, *request), response);
}

grpc::ServerUnaryReactor* AdminService::ListBlocks(grpc::CallbackServerContext* context,
                                                   const v1::ListBlocksRequest* request,
                                                   v1::ListBlocksResponse* response) {
  return Answer(context, latticekv::ListBlocks(engine_, *request), response);
}

grpc::ServerUnaryReactor* AdminService::GetBlock(grpc::CallbackServerContext* context,
                                                 const v1::GetBlockRequest* request,
                                                 v1::BlockDetail* response) {
  return Answer(context, latticekv::GetBlock(engine_, *request), response);
}

grpc::ServerUnaryReactor* AdminService::Stats(grpc::CallbackServerContext* context,
                                              const v1::StatsRequest* request,
                                              v1::StatsResponse* response) {
  return Answer(context, absl::StatusOr<v1::StatsResponse>(latticekv::Stats(engine_)), response);
}

grpc::ServerUnaryReactor* AdminService::ExplainMiss(grpc::CallbackServerContext* context,
                                                    const v1::ExplainMissRequest* request,
                                                    v1::ExplainMissResponse* response) {
  return Answer(context, latticekv::ExplainMiss(engine_, *request), response);
}

grpc::ServerWriteReactor<v1::VerifyProgress>* AdminService::Verify(
    grpc::CallbackServerContext* context, const v1::VerifyRequest* request) {
  return VerifyStream::Start(engine_, *request);
}

grpc::ServerUnaryReactor* AdminService::Flush(grpc::CallbackServerContext* context,
                                              const v1::FlushRequest* request,
                                              v1::FlushResponse* response) {
  if (engine_.config().disk_dir.empty()) {
    return Answer(context,
                  absl::StatusOr<v1::FlushResponse>(absl::FailedPreconditionError(
                      "this daemon keeps blocks in memory only, so there is no disk to flush to")),
                  response);
  }
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const bool taken = engine_.background().Submit(CodecPool::Kind::kEncode, [this, reactor] {
    reactor->Finish(ToGrpcStatus(WithReason(engine_.Flush(), v1::REASON_DISK)));
  });
  if (!taken) {
    reactor->Finish(ToGrpcStatus(
        LimitError("kMaxBackgroundJobs", "too much disk work waits already; flush again later")));
  }
  return reactor;
}

grpc::ServerUnaryReactor* AdminService::Drain(grpc::CallbackServerContext* context,
                                              const v1::DrainRequest* request,
                                              v1::DrainResponse* response) {
  if (!engine_.config().on_drain_requested) {
    return Answer(context,
                  absl::StatusOr<v1::DrainResponse>(absl::UnimplementedError(
                      "this server runs inside another program; stop that program instead")),
                  response);
  }
  spdlog::info("drain requested by {}", context->peer());
  engine_.StartDrain();
  engine_.config().on_drain_requested();
  return Answer(context, absl::StatusOr<v1::DrainResponse>(v1::DrainResponse()), response);
}

}  // namespace latticekv
