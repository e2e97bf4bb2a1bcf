// Means and spreads of the channels of raw chunks: what a profile is learnt from.
#ifndef LATTICEKV_CORE_CODEC_CHANNEL_STATISTICS_H_
#define LATTICEKV_CORE_CODEC_CHANNEL_STATISTICS_H_

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "core/codec/codec.h"
#include "core/layout/layout.h"
#include "core/layout/model_profile.h"
#include "core/layout/rotary_phase.h"

namespace latticekv {

// Sums over the vectors of all chunks that were added: keys without their rotary embedding, values
// over their rms. Sums are integers, so the order of the chunks does not matter. Not counted: the
// first kSinkTokens of a sequence, evicted tokens, vectors with a value that is not finite. Opaque
// planes have no statistics. Not thread-safe.
class ChannelStatistics {
 public:
  explicit ChannelStatistics(Layout layout);
  static size_t MemoryBytes(const Layout& layout);

  // `planes` as EncodeFrame takes them; `keep` as EncodeOptions::keep.
  void Add(uint32_t tokens, uint64_t start_position,
           const std::vector<std::vector<PlaneView>>& planes, std::span<const uint8_t> keep = {});

  const Layout& layout() const { return layout_; }

  struct Moments {
    std::vector<float> mean, sigma;  // [heads * head_dim], in the layout's channel order
  };
  // Nothing when the plane is opaque or one of its heads has no vector counted.
  std::optional<Moments> MomentsOf(size_t layer, size_t plane) const;

  // The profile of what was added, for the planes that have moments; steps and query energy are
  // those of `base` (null: none).
  ModelProfile MakeProfile(const ModelProfile* base) const;

 private:
  __extension__ using Int128 = __int128;
  struct Sums {
    Int128 sum = 0, squares = 0;  // in units of 2^-32 and 2^-64
  };
  struct Head {
    uint64_t vectors = 0;
    std::vector<Sums> channels;
  };
  // One vector after another of one head in one plane.
  void AddHead(const PlaneSpec& plane, const PlaneView& view, uint32_t head,
               std::span<const uint8_t> counted, std::span<const SinCos> table, Head& out);

  Layout layout_;
  std::vector<std::vector<std::vector<Head>>> heads_;  // [layer][plane][head]
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CHANNEL_STATISTICS_H_
