// RegisterLayout, GetProfile, Touch, Pin, Unpin and Delete, without the network.
#ifndef LATTICEKV_SERVER_BLOCK_COMMANDS_H_
#define LATTICEKV_SERVER_BLOCK_COMMANDS_H_

#include "absl/status/statusor.h"
#include "latticekv/v1/cache_service.pb.h"
#include "server/engine.h"

namespace latticekv {

absl::StatusOr<v1::RegisterLayoutResponse> RegisterLayout(CacheEngine& engine,
                                                          const v1::RegisterLayoutRequest& request);

// FAILED_PRECONDITION with REASON_UNKNOWN_LAYOUT or REASON_PROFILE_MISSING.
absl::StatusOr<v1::GetProfileResponse> GetProfile(CacheEngine& engine,
                                                  const v1::GetProfileRequest& request);

// A selector names blocks by hash or all of a session (NOT_FOUND when there is none); blocks that
// are not stored are counted as missing.
absl::StatusOr<v1::BlocksResponse> TouchBlocks(CacheEngine& engine,
                                               const v1::TouchRequest& request);
// All or nothing: RESOURCE_EXHAUSTED leaves no pin of this request behind.
absl::StatusOr<v1::BlocksResponse> PinBlocks(CacheEngine& engine, const v1::PinRequest& request);
absl::StatusOr<v1::BlocksResponse> UnpinBlocks(CacheEngine& engine,
                                               const v1::UnpinRequest& request);
// Of a session: those of its blocks that no other session holds.
absl::StatusOr<v1::BlocksResponse> DeleteBlocks(CacheEngine& engine,
                                                const v1::DeleteRequest& request);

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_BLOCK_COMMANDS_H_
