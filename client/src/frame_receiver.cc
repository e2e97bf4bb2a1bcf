#include "client/src/frame_receiver.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "client/src/get_operation.h"
#include "client/src/proto_convert.h"
#include "core/base/crc32c.h"
#include "core/base/status_macros.h"

namespace latticekv {

absl::Status FrameReceiver::OnMessage(const v1::GetBlocksResponse& message) {
  if (message.has_open()) return OnOpen(message.open());
  if (message.has_part()) return OnPart(message.part());
  if (!message.has_failed()) return absl::OkStatus();  // from a newer server
  LKV_ASSIGN_OR_RETURN(Block* const block, LiveBlock(message.failed().index()));
  block->live = false;
  block->frame = {};
  return sink_.OnBlockFailed(message.failed().index(),
                             StatusFromDetail(FromProto(message.failed().miss())));
}

absl::Status FrameReceiver::OnOpen(const v1::BlockOpen& open) {
  LKV_ASSIGN_OR_RETURN(const ServedBlock served, ReadBlockOpen(request_, open, blocks_.size()));
  Block& block = blocks_.emplace_back();
  block.live = served.miss.ok();
  block.tokens = served.block.tokens;
  block.frame_bytes = open.payload_bytes();
  return sink_.OnBlock(served);
}

absl::StatusOr<FrameReceiver::Block*> FrameReceiver::LiveBlock(uint32_t index) {
  if (index < blocks_.size() && blocks_[index].live) return &blocks_[index];
  return BadReply(absl::StrCat("something of block ", index, ", which is not open"));
}

absl::Status FrameReceiver::OnPart(const v1::GetPart& part) {
  LKV_ASSIGN_OR_RETURN(Block* const block, LiveBlock(part.index()));
  const ByteSpan data = AsBytes(part.data());
  const size_t have = block->frame.size();
  if (part.offset() != have || data.empty() || data.size() > limits::kMaxPartBytes ||
      data.size() > block->frame_bytes - have) {
    return BadReply(absl::StrCat(data.size(), " bytes at offset ", part.offset(),
                                 " of the frame of block ", part.index(), ", which do not fit"));
  }
  if (Crc32c(data) != part.crc32c()) {
    return BadReply(absl::StrCat("a part of block ", part.index(), " with a wrong checksum"));
  }
  block->frame.insert(block->frame.end(), data.begin(), data.end());
  return absl::OkStatus();
}

absl::Status FrameReceiver::DecodeLayer(const FrameDecoder& decoder, uint32_t block,
                                        uint32_t layer) {
  const std::vector<PlaneSpec>& planes = request_.layout.layout->layers[layer].planes;
  std::vector<MutablePlaneView> views;
  bool wanted = false;
  size_t unwanted_bytes = 0;
  for (uint32_t p = 0; p < planes.size(); ++p) {
    LKV_ASSIGN_OR_RETURN(views.emplace_back(), sink_.Destination(block, layer, p));
    wanted |= views.back().data != nullptr;
    if (views.back().data == nullptr) {
      unwanted_bytes += planes[p].token_bytes() * blocks_[block].tokens;
    }
  }
  if (!wanted) return absl::OkStatus();
  if (unwanted_.size() < unwanted_bytes) unwanted_.resize(unwanted_bytes);
  std::byte* at = unwanted_.data();
  for (uint32_t p = 0; p < planes.size(); ++p) {
    if (views[p].data != nullptr) continue;
    views[p] = ContiguousPlane(planes[p], at);
    at += planes[p].token_bytes() * blocks_[block].tokens;
  }
  return decoder.DecodeLayer(layer, views);
}

absl::Status FrameReceiver::OnEnd() {
  LKV_RETURN_IF_ERROR(CheckBlockCount(request_, blocks_.size()));
  std::vector<std::pair<uint32_t, FrameDecoder>> decoders;
  for (uint32_t i = 0; i < blocks_.size(); ++i) {
    Block& block = blocks_[i];
    if (!block.live) continue;
    if (block.frame.size() != block.frame_bytes) {
      return BadReply(absl::StrCat(block.frame.size(), " of ", block.frame_bytes,
                                   " bytes of the frame of block ", i));
    }
    LKV_ASSIGN_OR_RETURN(const FrameInfo info, ReadFrameInfo(block.frame));
    if (info.tokens != block.tokens) return BadReply("a frame of another length than it said");
    if (info.needs_profile) {
      LKV_ASSIGN_OR_RETURN(block.profile, profiles_(request_.layout, info.profile_hash));
    }
    LKV_ASSIGN_OR_RETURN(
        FrameDecoder decoder,
        FrameDecoder::Open(block.frame, *request_.layout.layout, block.profile.get()));
    decoders.emplace_back(i, std::move(decoder));
  }
  for (uint32_t l = request_.first_layer; l < EndLayer(request_) && !decoders.empty(); ++l) {
    for (const auto& [index, decoder] : decoders) {
      LKV_RETURN_IF_ERROR(DecodeLayer(decoder, index, l));
    }
    LKV_RETURN_IF_ERROR(sink_.OnLayer(l));
  }
  return absl::OkStatus();
}

}  // namespace latticekv
