// A llama.cpp sequence state (the bytes of llama_state_seq_get_data) as layers, heads and
// positions, and back. Needs no llama.cpp.
#ifndef LATTICEKV_CLIENT_EXAMPLES_LLAMA_CPP_SEQUENCE_STATE_H_
#define LATTICEKV_CLIENT_EXAMPLES_LLAMA_CPP_SEQUENCE_STATE_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "core/codec/codec.h"
#include "core/layout/layout.h"

namespace latticekv {

// LLAMA_STATE_SEQ_VERSION of the format below.
inline constexpr uint32_t kKnownStateVersion = 3;

// The state of one sequence whose cells are the positions 0, 1, ... without gaps:
//   u32 magic, i32 sequence, u32 streams (1), u32 cells
//   for each cell: i32 position, u32 sequences (1), i32 sequence
//   u32 values transposed, u32 layers
//   keys of each layer: i32 type, u64 bytes of a cell; cells x [heads, head_dim]
//   values of each layer, not transposed (flash attention): as the keys
//   values of each layer, transposed: i32 type, u32 bytes of an element, u32 heads * head_dim;
//   [heads, head_dim] x cells
// Layouts have planes "k" and "v" of one dtype in every layer. Not thread-safe.
class SequenceState {
 public:
  // UNIMPLEMENTED for a version, magic or shape of state that this code does not know;
  // INVALID_ARGUMENT when the state is not one of `layout`; DATA_LOSS when it is damaged.
  static absl::StatusOr<SequenceState> Parse(ByteVector bytes, uint32_t version,
                                             const Layout& layout);
  // A state of `tokens` cells whose keys and values are still to be written through Destination.
  static absl::StatusOr<SequenceState> Make(uint32_t version, const Layout& layout, uint32_t tokens,
                                            bool values_transposed);

  uint32_t tokens() const { return tokens_; }
  bool values_transposed() const { return values_transposed_; }
  // [layer][plane], [tokens, heads, head_dim] each; valid as long as the state.
  std::vector<std::vector<PlaneView>> Views() const;
  // Where that plane of that layer begins.
  MutablePlaneView Destination(uint32_t layer, uint32_t plane);
  // The state as llama.cpp takes it. Leaves nothing.
  ByteVector Take();

 private:
  SequenceState(const Layout& layout, uint32_t tokens, bool values_transposed);
  size_t key_bytes(size_t layer) const { return layout_.layers[layer].planes[0].token_bytes(); }
  size_t value_bytes(size_t layer) const { return layout_.layers[layer].planes[1].token_bytes(); }
  // Copies every value between its transposed place and its plane.
  void Transpose(bool to_planes);

  Layout layout_;
  uint32_t tokens_;
  bool values_transposed_;
  ByteVector bytes_;
  std::vector<size_t> key_at_, value_at_;  // of each layer, in bytes_
  std::vector<ByteVector> values_;         // of each layer when they are transposed in bytes_
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_EXAMPLES_LLAMA_CPP_SEQUENCE_STATE_H_
