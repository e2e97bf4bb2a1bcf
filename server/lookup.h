// The longest stored prefix of a sequence.
#ifndef LATTICEKV_SERVER_LOOKUP_H_
#define LATTICEKV_SERVER_LOOKUP_H_

#include "absl/status/statusor.h"
#include "latticekv/v1/cache_service.pb.h"
#include "server/engine.h"

namespace latticekv {

// Whole chunks are found by their chain hash; what remains of the ids is compared with the stored
// children of the last one, so that the leading tokens of a longer or of a partial chunk count too.
// An unknown layout is a miss, not an error. INVALID_ARGUMENT or RESOURCE_EXHAUSTED.
absl::StatusOr<v1::LookupResponse> LookupPrefix(CacheEngine& engine,
                                                const v1::LookupRequest& request);

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_LOOKUP_H_
