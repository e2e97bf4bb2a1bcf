// What a put will send: its chunks, their names, and their payload. Internal to client/.
#ifndef LATTICEKV_CLIENT_SRC_PUT_PLAN_H_
#define LATTICEKV_CLIENT_SRC_PUT_PLAN_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "latticekv/blocks.h"
#include "latticekv/v1/blocks.pb.h"

namespace latticekv {

struct PutChunk {
  const PutRequest* request = nullptr;
  uint32_t index = 0;  // within the put, or within all puts of a batch
  uint64_t start_position = 0;
  std::span<const uint32_t> tokens;
  Digest content_hash{};
  std::optional<Digest> parent_hash;
  uint64_t payload_bytes = 0;
  // With GPU memory: id of its region, for as long as an attempt lasts.
  uint64_t gpu_region = 0;
  // With attention mass: its levels, of the whole put.
  std::shared_ptr<const std::vector<float>> mass_levels;
};

// Cuts `request` into chunks at multiples of the namespace's chunk size. INVALID_ARGUMENT when the
// request does not fit its layout. The chunks refer to the request and its tokens.
absl::StatusOr<std::vector<PutChunk>> PlanPut(const PutRequest& request);

v1::PutOpen MakePutOpen(const PutRequest& request);
v1::BlockHeader MakeBlockHeader(const PutChunk& chunk);
// The chunk as a frame, encoded here.
absl::StatusOr<ByteVector> EncodeChunk(const PutChunk& chunk);

// Where a chunk of a put out of GPU memory lies.
v1::RegionPart MakeGpuPart(const PutChunk& chunk);

// Gathers a chunk's payload out of the request's strided views, part by part: for each layer, for
// each plane, contiguous [tokens, heads, head_dim].
class PayloadReader {
 public:
  explicit PayloadReader(const PutChunk& chunk);
  bool done() const { return layer_ == request_.planes.size(); }
  // Replaces `data` by the next part: whole token rows, at most kMaxPartBytes. Returns its CRC32C.
  uint32_t NextPart(std::string& data);
  // Writes the whole payload to `out`.
  void CopyAll(std::byte* out);
  uint64_t offset() const { return offset_; }

 private:
  // The next tokens of one plane, at most `max_bytes`: whole rows. Calls `take` with each run of
  // bytes that lie side by side, and goes on.
  template <typename Take>
  void NextRows(size_t max_bytes, const Take& take);

  const PutRequest& request_;
  const Layout& layout_;
  const uint64_t first_token_;  // within the request's views
  const uint32_t tokens_;
  size_t layer_ = 0, plane_ = 0;
  uint32_t token_ = 0;
  uint64_t offset_ = 0;  // of the next part
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_PUT_PLAN_H_
