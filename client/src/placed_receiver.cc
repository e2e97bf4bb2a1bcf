#include "client/src/placed_receiver.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "client/src/get_operation.h"
#include "client/src/proto_convert.h"
#include "core/base/status_macros.h"

namespace latticekv {

absl::Status PlacedReceiver::OnMessage(const v1::GetBlocksResponse& message) {
  if (message.has_open()) return OnOpen(message.open());
  if (message.has_placed()) {
    LKV_RETURN_IF_ERROR(Settle(message.placed().index()));
    return sink_.OnBlockPlaced(message.placed().index());
  }
  if (message.has_failed()) {
    LKV_RETURN_IF_ERROR(Settle(message.failed().index()));
    return sink_.OnBlockFailed(message.failed().index(),
                               StatusFromDetail(FromProto(message.failed().miss())));
  }
  if (message.has_part() || message.has_window_parts()) {
    return BadReply("bytes of a block that it should have placed");
  }
  return absl::OkStatus();  // from a newer server
}

absl::Status PlacedReceiver::OnOpen(const v1::BlockOpen& open) {
  LKV_ASSIGN_OR_RETURN(const ServedBlock served, ReadBlockOpen(request_, open, due_.size()));
  due_.push_back(served.miss.ok());
  return sink_.OnBlock(served);
}

absl::Status PlacedReceiver::Settle(uint32_t index) {
  if (index >= due_.size() || !due_[index]) {
    return BadReply(absl::StrCat("word of block ", index, ", which is not due"));
  }
  due_[index] = false;
  return absl::OkStatus();
}

absl::Status PlacedReceiver::OnEnd() {
  LKV_RETURN_IF_ERROR(CheckBlockCount(request_, due_.size()));
  const auto due = std::find(due_.begin(), due_.end(), true);
  if (due == due_.end()) return absl::OkStatus();
  return BadReply(absl::StrCat("no word of block ", due - due_.begin()));
}

}  // namespace latticekv
