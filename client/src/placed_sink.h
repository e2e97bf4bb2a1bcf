// Where Client::GetToGpu collects what became of its blocks. Internal to client/.
#ifndef LATTICEKV_CLIENT_SRC_PLACED_SINK_H_
#define LATTICEKV_CLIENT_SRC_PLACED_SINK_H_

#include <utility>

#include "absl/status/statusor.h"
#include "latticekv/gpu_memory.h"

namespace latticekv {

class PlacedSink : public GetSink {
 public:
  absl::Status OnBlock(const ServedBlock& block) override {
    placed_.blocks.push_back({block.block, block.miss});
    return absl::OkStatus();
  }
  absl::StatusOr<MutablePlaneView> Destination(uint32_t, uint32_t, uint32_t) override {
    return MutablePlaneView{};
  }
  absl::Status OnLayer(uint32_t) override { return absl::OkStatus(); }
  absl::Status OnBlockFailed(uint32_t block_index, const absl::Status& why) override {
    placed_.blocks[block_index].status = why;
    return absl::OkStatus();
  }
  absl::Status OnRestart() override {
    placed_ = {};
    return absl::OkStatus();
  }
  // After the get, which has told of every block.
  PlacedBlocks Take() { return std::exchange(placed_, {}); }

 private:
  PlacedBlocks placed_;
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_PLACED_SINK_H_
