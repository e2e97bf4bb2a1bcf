// How the payload of a block that is put comes together: from parts in their order, or from a
// client's region of shared memory. Knows no stream.
#ifndef LATTICEKV_SERVER_UPLOAD_PAYLOAD_H_
#define LATTICEKV_SERVER_UPLOAD_PAYLOAD_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/buffer_pool.h"
#include "core/base/bytes.h"
#include "proto/part_wire.h"
#include "server/block_writer.h"
#include "server/region_registry.h"

namespace latticekv {

// INVALID_ARGUMENT unless `part` is what is due of a payload of `payload_bytes` of which `received`
// bytes are there.
absl::Status CheckPart(const PutPartView& part, uint64_t received, uint64_t payload_bytes);

// Copies the part behind what is there. INVALID_ARGUMENT when its checksum is wrong; `payload` is
// of no use then.
absl::Status AppendPart(const PutPartView& part, ByteVector& payload);

// Where a payload lies in shared memory.
struct RegionPlace {
  std::shared_ptr<SharedRegion> region;
  uint64_t offset = 0;
  std::optional<uint32_t> crc32c;
};

// The `payload_bytes` at `place`, where they lie, or as a copy in memory of `buffers` when they
// have a checksum or `copied` asks for it. INVALID_ARGUMENT when they are not within the region or
// the checksum is wrong. Reads all of the payload: for the codec threads.
absl::StatusOr<Payload> FetchFromRegion(const RegionPlace& place, uint64_t payload_bytes,
                                        bool copied, BufferPool& buffers);

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_UPLOAD_PAYLOAD_H_
