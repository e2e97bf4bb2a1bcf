// Between the messages of the wire and the structures of the public headers. What comes from the
// server is checked here. Internal to client/.
#ifndef LATTICEKV_CLIENT_SRC_PROTO_CONVERT_H_
#define LATTICEKV_CLIENT_SRC_PROTO_CONVERT_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "latticekv/admin.h"
#include "latticekv/blocks.h"
#include "latticekv/v1/admin_service.pb.h"
#include "latticekv/v1/cache_service.pb.h"

namespace latticekv {

inline std::string BytesString(ByteSpan bytes) { return std::string(AsText(bytes)); }

// Nothing unless `bytes` has 32 bytes.
std::optional<Digest> ToDigest(const std::string& bytes);

v1::Layout ToProto(const Layout& layout);
absl::StatusOr<Layout> FromProto(const v1::Layout& proto);
v1::Preset ToProto(PresetId preset);
v1::QualityBounds ToProto(const QualityBounds& bounds);
v1::BlockSelector ToProto(const BlockSelector& selector);

Quality FromProto(const v1::Quality& proto);
ErrorDetail FromProto(const v1::ErrorDetail& proto);
absl::StatusOr<BlockInfo> FromProto(const v1::BlockInfo& proto);
SessionSummary FromProto(const v1::SessionSummary& proto);
BlockSummary FromProto(const v1::BlockSummary& proto);
absl::StatusOr<SessionDetail> FromProto(const v1::SessionDetail& proto);
BlockDetail FromProto(const v1::BlockDetail& proto);
ServerStats FromProto(const v1::StatsResponse& proto);

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_PROTO_CONVERT_H_
