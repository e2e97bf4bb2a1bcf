// What operators see, without the network. Keys are lower-case hex.
#ifndef LATTICEKV_SERVER_ADMIN_VIEWS_H_
#define LATTICEKV_SERVER_ADMIN_VIEWS_H_

#include "absl/status/statusor.h"
#include "latticekv/v1/admin_service.pb.h"
#include "server/engine.h"

namespace latticekv {

absl::StatusOr<v1::ListSessionsResponse> ListSessions(CacheEngine& engine,
                                                      const v1::ListSessionsRequest& request);
absl::StatusOr<v1::SessionDetail> GetSession(CacheEngine& engine,
                                             const v1::GetSessionRequest& request);
absl::StatusOr<v1::ListBlocksResponse> ListBlocks(CacheEngine& engine,
                                                  const v1::ListBlocksRequest& request);
absl::StatusOr<v1::BlockDetail> GetBlock(CacheEngine& engine, const v1::GetBlockRequest& request);
absl::StatusOr<v1::ExplainMissResponse> ExplainMiss(CacheEngine& engine,
                                                    const v1::ExplainMissRequest& request);
v1::StatsResponse Stats(CacheEngine& engine);

// Name of what encodes and decodes on this machine.
std::string CodecInUse();
std::string_view ServerVersion();

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_ADMIN_VIEWS_H_
