// The get: checks what the server streams and writes it where the sink says. Internal to client/.
#ifndef LATTICEKV_CLIENT_SRC_GET_OPERATION_H_
#define LATTICEKV_CLIENT_SRC_GET_OPERATION_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/src/frame_receiver.h"
#include "client/src/get_window.h"
#include "client/src/region_client.h"
#include "client/src/retry_loop.h"
#include "client/src/stub.h"
#include "latticekv/blocks.h"

namespace latticekv {

// Takes the messages of one GetBlocks stream in order and refuses those that do not fit: nothing is
// written before index, layer, plane, offset and size are known to be right, and the checksum of
// what came over a socket.
class GetReceiver {
 public:
  // All must outlive the receiver; the request is valid (CheckGet). `window` may be null.
  GetReceiver(const GetRequest& request, GetSink& sink, GetWindow* window);
  absl::Status OnMessage(const v1::GetBlocksResponse& message);
  // After the last message: DATA_LOSS when something is missing.
  absl::Status OnEnd();

 private:
  struct Block {
    uint32_t tokens = 0;
    bool live = false;
    uint32_t layer = 0;  // that it is at; in order of layers at most one ahead of current_layer_
    uint32_t plane = 0;
    uint64_t plane_offset = 0;  // bytes of that plane that have come
    MutablePlaneView destination;
  };

  absl::Status OnOpen(const v1::BlockOpen& open);
  // With the checksum of what came over a socket.
  absl::Status OnPart(const v1::GetPart& part, ByteSpan data, std::optional<uint32_t> crc32c);
  absl::Status CheckPart(const v1::GetPart& part, ByteSpan data) const;
  absl::Status OnFailed(const v1::BlockOpen& failed);
  // Tells the sink of layers that are complete in every live block.
  absl::Status FinishLayers();

  const GetRequest& request_;
  const Layout& layout_;
  GetSink& sink_;
  GetWindow* const window_;
  const uint32_t end_layer_;
  std::vector<Block> blocks_;
  std::vector<uint64_t> layer_offsets_;  // in a payload, bytes a token
  uint32_t current_layer_;               // the first that is not complete in every live block
  uint32_t live_ = 0;
  uint32_t pending_ = 0;  // live blocks that are at current_layer_
  bool parts_began_ = false;
};

// What both kinds of gets check. DATA_LOSS: the server sent `what`.
absl::Status BadReply(const std::string& what);
// A block as it is announced, the `have`th.
absl::StatusOr<ServedBlock> ReadBlockOpen(const GetRequest& request, const v1::BlockOpen& open,
                                          size_t have);
absl::Status CheckBlockCount(const GetRequest& request, size_t blocks);
// The layer behind the last one asked for.
uint32_t EndLayer(const GetRequest& request);

// Copies bytes [offset, offset + data) of a contiguous [tokens, heads, head_dim] plane into `view`.
void ScatterPlane(const PlaneSpec& plane, uint64_t offset, ByteSpan data,
                  const MutablePlaneView& view);

// INVALID_ARGUMENT when the request is wrong in itself.
absl::Status CheckGet(const GetRequest& request);

// What a get comes over.
struct GetRoute {
  Stub* stub = nullptr;
  RegionClient* regions = nullptr;   // null: no shared memory
  ProfileSource profiles;            // of gets that decode here
  const Stub* lease_stub = nullptr;  // what GPU caches of this client are leased over
};

// The whole get, over as many streams as `retry` allows.
absl::Status RunGet(const GetRoute& route, const GetRequest& request, GetSink& sink,
                    const ClientOptions& options, RetryState retry);

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_GET_OPERATION_H_
