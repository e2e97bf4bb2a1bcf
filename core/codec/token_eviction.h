// Tokens left out of a frame: which ones, and how rows of those kept move in and out.
#ifndef LATTICEKV_CORE_CODEC_TOKEN_EVICTION_H_
#define LATTICEKV_CORE_CODEC_TOKEN_EVICTION_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "core/codec/codec.h"

namespace latticekv {

// The most recent tokens that no choice evicts: what was just said is asked about next, and has had
// few queries to show it.
inline constexpr uint32_t kRecentTokens = 64;

// Which of a prefill's tokens to keep, 1 or 0 each: the first kSinkTokens, the last kRecentTokens,
// and of the rest those that got the most attention per query that could see them, each layer's
// attention counted alike, until `fraction` of the tokens are kept. The best of every chunk of
// `chunk_tokens` stays, since a chunk cannot be empty. `mass` is of the whole prefill.
// INVALID_ARGUMENT for a fraction outside of (0, 1] or mass that is no number from 0 on.
absl::StatusOr<std::vector<uint8_t>> ChooseKeptTokens(const AttentionMass& mass, size_t layers,
                                                      uint32_t tokens, double fraction,
                                                      uint32_t chunk_tokens);

// INVALID_ARGUMENT unless `keep` is empty or can be the keep mask of a chunk of `tokens`.
absl::Status CheckKeep(const Layout& layout, uint32_t tokens, const std::vector<uint8_t>& keep);

// The elements of tokens that are kept; all of them when `keep` is empty.
template <typename T>
std::vector<T> KeptOnly(std::vector<T> all, const std::vector<uint8_t>& keep) {
  size_t kept = 0;
  for (size_t t = 0; t < keep.size(); ++t) {
    if (keep[t]) all[kept++] = all[t];
  }
  if (!keep.empty()) all.resize(kept);
  return all;
}

// Copies the kept rows of a chunk to `raw`; views of them, as RawChunkViews has them.
std::vector<std::vector<PlaneView>> GatherKept(const Layout& layout,
                                               const std::vector<std::vector<PlaneView>>& planes,
                                               const std::vector<uint8_t>& keep, ByteVector& raw);

// Moves the rows that lie at the beginning of a layer's planes to their tokens and sets the others
// to zero.
void SpreadKept(const LayerSpec& layer, const std::vector<uint8_t>& keep,
                const std::vector<MutablePlaneView>& planes);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_TOKEN_EVICTION_H_
