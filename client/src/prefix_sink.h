// Where Client::GetPrefix collects a prefix. Internal to client/.
#ifndef LATTICEKV_CLIENT_SRC_PREFIX_SINK_H_
#define LATTICEKV_CLIENT_SRC_PREFIX_SINK_H_

#include <vector>

#include "latticekv/blocks.h"

namespace latticekv {

// Keeps the blocks before the first missing one. Memory of a layer is allocated when it begins.
class PrefixSink : public GetSink {
 public:
  explicit PrefixSink(const GetRequest& request) : request_(request) {}

  absl::Status OnBlock(const ServedBlock& block) override;
  absl::StatusOr<MutablePlaneView> Destination(uint32_t block_index, uint32_t layer,
                                               uint32_t plane) override;
  absl::Status OnLayer(uint32_t layer) override { return absl::OkStatus(); }
  absl::Status OnBlockFailed(uint32_t block_index, const absl::Status& why) override;
  absl::Status OnRestart() override;

  // After the get.
  StoredPrefix Take();

 private:
  const GetRequest& request_;
  StoredPrefix prefix_;
  std::vector<uint64_t> first_token_;  // of each block of the prefix
  std::vector<size_t> first_id_;       // where its token ids begin
  uint64_t tokens_ = 0;
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_PREFIX_SINK_H_
