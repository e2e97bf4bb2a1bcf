// A get into GPU memory, where the server places blocks by itself. Internal to client/.
#ifndef LATTICEKV_CLIENT_SRC_PLACED_RECEIVER_H_
#define LATTICEKV_CLIENT_SRC_PLACED_RECEIVER_H_

#include <vector>

#include "absl/status/status.h"
#include "latticekv/blocks.h"
#include "latticekv/v1/blocks.pb.h"

namespace latticekv {

// Takes the messages of one GetBlocks stream with a target.
class PlacedReceiver {
 public:
  // Both must outlive the receiver; the request is valid (CheckGet).
  PlacedReceiver(const GetRequest& request, GetSink& sink) : request_(request), sink_(sink) {}
  absl::Status OnMessage(const v1::GetBlocksResponse& message);
  // After the last message: DATA_LOSS when something is missing.
  absl::Status OnEnd();

 private:
  absl::Status OnOpen(const v1::BlockOpen& open);
  // The block is told of, once; DATA_LOSS when it is not due.
  absl::Status Settle(uint32_t index);

  const GetRequest& request_;
  GetSink& sink_;
  std::vector<bool> due_;  // by block: it was found and nothing was told of it
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_PLACED_RECEIVER_H_
