// A get of frames, decoded on the worker. Internal to client/.
#ifndef LATTICEKV_CLIENT_SRC_FRAME_RECEIVER_H_
#define LATTICEKV_CLIENT_SRC_FRAME_RECEIVER_H_

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "latticekv/blocks.h"
#include "latticekv/v1/blocks.pb.h"

namespace latticekv {

// The profile of this hash that frames of a layout were made with.
using ProfileSource = std::function<absl::StatusOr<std::shared_ptr<const ModelProfile>>(
    const RegisteredLayout& layout, const Digest& hash)>;

// Takes the messages of one GetBlocks stream of frames; the sink hears of blocks at once and of
// layers at the end.
class FrameReceiver {
 public:
  // All must outlive the receiver; the request is valid (CheckGet).
  FrameReceiver(const GetRequest& request, GetSink& sink, const ProfileSource& profiles)
      : request_(request), sink_(sink), profiles_(profiles) {}
  absl::Status OnMessage(const v1::GetBlocksResponse& message);
  // After the last message: decodes. DATA_LOSS when something is missing.
  absl::Status OnEnd();

 private:
  struct Block {
    uint32_t tokens = 0;
    uint64_t frame_bytes = 0;
    bool live = false;
    ByteVector frame;
    std::shared_ptr<const ModelProfile> profile;
  };
  absl::Status OnOpen(const v1::BlockOpen& open);
  absl::Status OnPart(const v1::GetPart& part);
  absl::StatusOr<Block*> LiveBlock(uint32_t index);
  absl::Status DecodeLayer(const FrameDecoder& decoder, uint32_t block, uint32_t layer);

  const GetRequest& request_;
  GetSink& sink_;
  const ProfileSource& profiles_;
  std::vector<Block> blocks_;
  ByteVector unwanted_;  // planes that the sink has no place for
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_FRAME_RECEIVER_H_
