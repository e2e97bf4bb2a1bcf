#include "server/service_cache.h"

#include <optional>
#include <utility>
#include <vector>

#include "proto/part_wire.h"
#include "server/block_commands.h"
#include "server/get_stream.h"
#include "server/lookup.h"
#include "server/put_stream.h"
#include "server/region_stream.h"
#include "server/unary.h"

namespace latticekv {

grpc::ServerUnaryReactor* CacheService::RegisterLayout(grpc::CallbackServerContext* context,
                                                       const v1::RegisterLayoutRequest* request,
                                                       v1::RegisterLayoutResponse* response) {
  return Answer(context, latticekv::RegisterLayout(engine_, *request), response);
}

grpc::ServerUnaryReactor* CacheService::GetProfile(grpc::CallbackServerContext* context,
                                                   const v1::GetProfileRequest* request,
                                                   v1::GetProfileResponse* response) {
  return Answer(context, latticekv::GetProfile(engine_, *request), response);
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* CacheService::PutBlocks(
    grpc::CallbackServerContext* context) {
  return PutStream::Start(engine_, regions_, context);
}

grpc::ServerUnaryReactor* CacheService::Lookup(grpc::CallbackServerContext* context,
                                               const v1::LookupRequest* request,
                                               v1::LookupResponse* response) {
  return Answer(context, LookupPrefix(engine_, *request), response);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* CacheService::GetBlocks(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  std::vector<grpc::Slice> slices;
  v1::GetBlocksRequest parsed;
  const bool good = request->Dump(&slices).ok() && FromSlices(slices, &parsed);
  return GetStream::Start(engine_, regions_, context,
                          good ? std::optional(std::move(parsed)) : std::nullopt);
}

grpc::ServerWriteReactor<v1::RegionGrant>* CacheService::OpenRegion(
    grpc::CallbackServerContext* context, const v1::OpenRegionRequest* request) {
  const std::string peer = context->peer();
  return RegionStream::Start(engine_, regions_, *request, peer.rfind("unix:", 0) == 0);
}

grpc::ServerUnaryReactor* CacheService::Touch(grpc::CallbackServerContext* context,
                                              const v1::TouchRequest* request,
                                              v1::BlocksResponse* response) {
  return Answer(context, TouchBlocks(engine_, *request), response);
}

grpc::ServerUnaryReactor* CacheService::Pin(grpc::CallbackServerContext* context,
                                            const v1::PinRequest* request,
                                            v1::BlocksResponse* response) {
  return Answer(context, PinBlocks(engine_, *request), response);
}

grpc::ServerUnaryReactor* CacheService::Unpin(grpc::CallbackServerContext* context,
                                              const v1::UnpinRequest* request,
                                              v1::BlocksResponse* response) {
  return Answer(context, UnpinBlocks(engine_, *request), response);
}

grpc::ServerUnaryReactor* CacheService::Delete(grpc::CallbackServerContext* context,
                                               const v1::DeleteRequest* request,
                                               v1::BlocksResponse* response) {
  return Answer(context, DeleteBlocks(engine_, *request), response);
}

}  // namespace latticekv
