// latticekv.v1.Admin over gRPC.
#ifndef LATTICEKV_SERVER_SERVICE_ADMIN_H_
#define LATTICEKV_SERVER_SERVICE_ADMIN_H_

#include "latticekv/v1/admin_service.grpc.pb.h"
#include "server/engine.h"

namespace latticekv {

class AdminService final : public v1::Admin::CallbackService {
 public:
  explicit AdminService(CacheEngine& engine) : engine_(engine) {}

  grpc::ServerUnaryReactor* ListSessions(grpc::CallbackServerContext* context,
                                         const v1::ListSessionsRequest* request,
                                         v1::ListSessionsResponse* response) override;
  grpc::ServerUnaryReactor* GetSession(grpc::CallbackServerContext* context,
                                       const v1::GetSessionRequest* request,
                                       v1::SessionDetail* response) override;
  grpc::ServerUnaryReactor* ListBlocks(grpc::CallbackServerContext* context,
                                       const v1::ListBlocksRequest* request,
                                       v1::ListBlocksResponse* response) override;
  grpc::ServerUnaryReactor* GetBlock(grpc::CallbackServerContext* context,
                                     const v1::GetBlockRequest* request,
                                     v1::BlockDetail* response) override;
  grpc::ServerUnaryReactor* Stats(grpc::CallbackServerContext* context,
                                  const v1::StatsRequest* request,
                                  v1::StatsResponse* response) override;
  grpc::ServerUnaryReactor* ExplainMiss(grpc::CallbackServerContext* context,
                                        const v1::ExplainMissRequest* request,
                                        v1::ExplainMissResponse* response) override;
  grpc::ServerWriteReactor<v1::VerifyProgress>* Verify(grpc::CallbackServerContext* context,
                                                       const v1::VerifyRequest* request) override;
  grpc::ServerUnaryReactor* Flush(grpc::CallbackServerContext* context,
                                  const v1::FlushRequest* request,
                                  v1::FlushResponse* response) override;
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const v1::DrainRequest* request,
                                  v1::DrainResponse* response) override;

 private:
  CacheEngine& engine_;
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_SERVICE_ADMIN_H_
