// latticekv.v1.KvCache over gRPC.
#ifndef LATTICEKV_SERVER_SERVICE_CACHE_H_
#define LATTICEKV_SERVER_SERVICE_CACHE_H_

#include "latticekv/v1/cache_service.grpc.pb.h"
#include "server/engine.h"
#include "server/region_registry.h"

namespace latticekv {

namespace internal {
// PutBlocks and GetBlocks see their messages as bytes, so that payloads are not copied.
template <template <typename> typename... Methods>
struct ServiceOf;
template <>
struct ServiceOf<> {
  using Type = v1::KvCache::Service;
};
template <template <typename> typename First, template <typename> typename... Rest>
struct ServiceOf<First, Rest...> {
  using Type = First<typename ServiceOf<Rest...>::Type>;
};
using K = v1::KvCache;
using CacheServiceBase =
    ServiceOf<K::WithCallbackMethod_RegisterLayout, K::WithCallbackMethod_GetProfile,
              K::WithRawCallbackMethod_PutBlocks, K::WithCallbackMethod_Lookup,
              K::WithRawCallbackMethod_GetBlocks, K::WithCallbackMethod_Touch,
              K::WithCallbackMethod_Pin, K::WithCallbackMethod_Unpin, K::WithCallbackMethod_Delete,
              K::WithCallbackMethod_OpenRegion>::Type;
}  // namespace internal

// Unary calls are answered on gRPC's threads; what encodes or decodes runs on the codec threads.
class CacheService final : public internal::CacheServiceBase {
 public:
  explicit CacheService(CacheEngine& engine)
      : engine_(engine), regions_(engine.config().shared_memory_bytes) {}

  grpc::ServerUnaryReactor* RegisterLayout(grpc::CallbackServerContext* context,
                                           const v1::RegisterLayoutRequest* request,
                                           v1::RegisterLayoutResponse* response) override;
  grpc::ServerUnaryReactor* GetProfile(grpc::CallbackServerContext* context,
                                       const v1::GetProfileRequest* request,
                                       v1::GetProfileResponse* response) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* PutBlocks(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* Lookup(grpc::CallbackServerContext* context,
                                   const v1::LookupRequest* request,
                                   v1::LookupResponse* response) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* GetBlocks(grpc::CallbackServerContext* context,
                                                        const grpc::ByteBuffer* request) override;
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
  grpc::ServerWriteReactor<v1::RegionGrant>* OpenRegion(
      grpc::CallbackServerContext* context, const v1::OpenRegionRequest* request) override;

 private:
  CacheEngine& engine_;
  RegionRegistry regions_;
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_SERVICE_CACHE_H_
