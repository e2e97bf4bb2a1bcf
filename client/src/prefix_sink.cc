#include "client/src/prefix_sink.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"

namespace latticekv {

absl::Status PrefixSink::OnBlock(const ServedBlock& block) {
  if (!prefix_.miss.ok()) return absl::OkStatus();
  if (!block.miss.ok()) {
    prefix_.miss = block.miss;
    return absl::OkStatus();
  }
  if (!prefix_.blocks.empty()) {
    const BlockInfo& before = prefix_.blocks.back();
    if (block.block.start_position != before.start_position + before.tokens) {
      prefix_.miss = absl::NotFoundError("a block of the prefix does not follow the one before it");
      return absl::OkStatus();
    }
  }
  first_token_.push_back(tokens_);
  first_id_.push_back(prefix_.tokens.size());
  prefix_.blocks.push_back(block.block);
  prefix_.tokens.insert(prefix_.tokens.end(), block.tokens.begin(), block.tokens.end());
  // The mask covers all tokens from the first block with evicted ones on.
  if (!block.keep.empty() || !prefix_.keep.empty()) {
    prefix_.keep.resize(tokens_, 1);
    prefix_.keep.insert(prefix_.keep.end(), block.keep.begin(), block.keep.end());
    prefix_.keep.resize(tokens_ + block.block.tokens, 1);
  }
  tokens_ += block.block.tokens;
  return absl::OkStatus();
}

absl::StatusOr<MutablePlaneView> PrefixSink::Destination(uint32_t block_index, uint32_t layer,
                                                         uint32_t plane) {
  if (block_index >= prefix_.blocks.size()) return MutablePlaneView{};
  const LayerSpec& spec = request_.layout.layout->layers[layer];
  const size_t at = layer - request_.first_layer;
  if (prefix_.planes.size() <= at) prefix_.planes.resize(at + 1);
  prefix_.planes[at].resize(spec.planes.size());
  ByteVector& data = prefix_.planes[at][plane];
  const size_t row_bytes = spec.planes[plane].token_bytes();
  if (data.empty()) data.resize(row_bytes * tokens_);
  return ContiguousPlane(spec.planes[plane], data.data() + first_token_[block_index] * row_bytes);
}

absl::Status PrefixSink::OnBlockFailed(uint32_t block_index, const absl::Status& why) {
  if (block_index >= prefix_.blocks.size()) return absl::OkStatus();
  // Memory already handed out keeps its place; Take cuts it.
  prefix_.miss = why;
  prefix_.blocks.resize(block_index);
  prefix_.tokens.resize(first_id_[block_index]);
  return absl::OkStatus();
}

absl::Status PrefixSink::OnRestart() {
  prefix_ = {};
  first_token_.clear();
  first_id_.clear();
  tokens_ = 0;
  return absl::OkStatus();
}

StoredPrefix PrefixSink::Take() {
  const size_t kept = prefix_.blocks.size();
  const uint64_t tokens = kept < first_token_.size() ? first_token_[kept] : tokens_;
  if (prefix_.keep.size() > tokens) prefix_.keep.resize(tokens);
  const auto& keep = prefix_.keep;
  if (std::find(keep.begin(), keep.end(), 0) == keep.end()) prefix_.keep.clear();
  for (size_t l = 0; l < prefix_.planes.size(); ++l) {
    const LayerSpec& spec = request_.layout.layout->layers[request_.first_layer + l];
    for (size_t p = 0; p < prefix_.planes[l].size(); ++p) {
      prefix_.planes[l][p].resize(spec.planes[p].token_bytes() * tokens);
    }
  }
  return std::exchange(prefix_, {});
}

}  // namespace latticekv
