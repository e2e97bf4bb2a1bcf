#include "server/upload_payload.h"

#include "absl/strings/str_cat.h"
#include "core/base/crc32c.h"
#include "core/base/limits.h"
#include "server/error_detail.h"

namespace latticekv {

absl::Status CheckPart(const PutPartView& part, uint64_t received, uint64_t payload_bytes) {
  if (part.data_bytes == 0 || part.data_bytes > limits::kMaxPartBytes) {
    return BadPayload(
        absl::StrCat("a part has ", part.data_bytes, " bytes; send 1 to ", limits::kMaxPartBytes));
  }
  if (part.offset != received) {
    return BadPayload(absl::StrCat("a part starts at offset ", part.offset, " where ", received,
                                   " was due; send parts in order"));
  }
  if (part.data_bytes > payload_bytes - received) {
    return BadPayload(absl::StrCat("the parts pass the announced ", payload_bytes,
                                   " payload bytes; announce the right size"));
  }
  return absl::OkStatus();
}

absl::Status AppendPart(const PutPartView& part, ByteVector& payload) {
  uint32_t crc = 0;
  for (const ByteSpan piece : part.data) {
    payload.insert(payload.end(), piece.begin(), piece.end());
    crc = Crc32c(piece, crc);
  }
  if (crc == part.crc32c) return absl::OkStatus();
  return BadPayload(absl::StrCat("the CRC32C of the part at offset ", part.offset,
                                 " is wrong; put the block again"));
}

absl::StatusOr<Payload> FetchFromRegion(const RegionPlace& place, uint64_t payload_bytes,
                                        bool copied, BufferPool& buffers) {
  const auto bytes = place.region->Find(place.offset, payload_bytes);
  if (!bytes) {
    return BadPayload(absl::StrCat("the payload is not within its region of ",
                                   place.region->bytes(), " bytes; put the block again"));
  }
  Payload out;
  if (!copied && !place.crc32c) {
    out.region = place.region;
    out.shared = *bytes;
    return out;
  }
  // The client can still write to the region: what counts is the copy, and its checksum.
  out.own = buffers.Take(bytes->size());
  out.own.assign(bytes->begin(), bytes->end());
  if (place.crc32c && Crc32c(out.own) != *place.crc32c) {
    return BadPayload("the CRC32C of the payload in shared memory is wrong; put the block again");
  }
  return out;
}

}  // namespace latticekv
