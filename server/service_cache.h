// latticekv.v1.KvCache over gRPC.
#ifndef LATTICEKV_SERVER_SERVICE_CACHE_H_
#define LATTICEKV_SERVER_SERVICE_CACHE_H_

#include "latticekv/v1/cache_service.grpc.pb.h"
#include "server/engine.h"

namespace latticekv {

// Unary calls are answered on gRPC's threads; what encodes or decodes runs on the codec threads.
class CacheService final : public v1::KvCache::CallbackService {
 public:
  explicit CacheService(CacheEngine& engine) : engine_(engine) {}

  grpc::ServerUnaryReactor* RegisterLayout(grpc::CallbackServerContext* context,
                                           const v1::RegisterLayoutRequest* request,
                                           v1::RegisterLayoutResponse* response) override;
  grpc::ServerBidiReactor<v1::PutBlocksRequest, v1::PutBlocksResponse>* PutBlocks(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* Lookup(grpc::CallbackServerContext* context,
                                   const v1::LookupRequest* request,
                                   v1::LookupResponse* response) override;
  grpc::ServerWriteReactor<v1::GetBlocksResponse>* GetBlocks(
      grpc::CallbackServerContext* context, const v1::GetBlocksRequest* request) override;
  grpc::ServerUnaryReactor* Touch(grpc::CallbackServerContext* context,
                                  const v1::TouchRequest* request,
                                  v1::BlocksResponse* response) override;
  grpc::ServerUnaryReactor* Pin(grpc::CallbackServerContext* context, const v1::PinRequest* request,
                                v1::BlocksResponse* response) override;
  grpc::ServerUnaryReactor* Unpin(grpc::CallbackServerContext* context,
                                  const v1::UnpinRequest* request,
                                  v1::BlocksResponse* response) override;
  grpc::ServerUnaryReactor* Delete(grpc::CallbackServerContext* context,
                                   const v1::DeleteRequest* request,
                                   v1::BlocksResponse* response) override;

 private:
  CacheEngine& engine_;
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_SERVICE_CACHE_H_
