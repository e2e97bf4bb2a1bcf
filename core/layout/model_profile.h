// What a model's queries, keys and values look like on average: the side information that the codec
// takes from the model instead of from every chunk (DESIGN 1.2).
#ifndef LATTICEKV_CORE_LAYOUT_MODEL_PROFILE_H_
#define LATTICEKV_CORE_LAYOUT_MODEL_PROFILE_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "core/layout/layout.h"

namespace latticekv {

// Statistics of one head of one plane, in canonical channel order (neox: the first halves of all
// rotary pairs, then the second halves, then channels that are not rotated).
struct HeadProfile {
  // Mean of channel c is mean[c] * 2^mean_exponent. Keys before rotary embedding in their own unit,
  // values divided by the token's rms.
  int16_t mean_exponent = 0;
  std::vector<int32_t> mean;
  // Spread (standard deviation) of channel c is 2^(log2_sigma_16[c] / 16).
  std::vector<int16_t> log2_sigma_16;
  // Keys only: step of channel c relative to the head's, in sixteenths of an octave; equal for both
  // channels of a rotary pair. Derived from the query energy, empty without it.
  std::vector<int16_t> step_16;
  // Keys only, may be empty: E[q_c^2], mean squared query per channel before rotation. Not needed
  // to decode.
  std::vector<float> query_energy;
  bool operator==(const HeadProfile&) const = default;
  // Mean of query_energy over the channels, dead channels floored (see MakeProfile); 0 without.
  float mean_energy = 0;
  bool has_statistics() const { return !mean.empty(); }
};

struct PlaneProfile {
  std::vector<HeadProfile> heads;  // empty for opaque planes
  bool operator==(const PlaneProfile&) const = default;
};

// Immutable once made; shared by const pointer between threads.
struct ModelProfile {
  Digest layout_fingerprint{};
  // ProfileHash of this profile, taken once by what makes it: every frame needs it.
  Digest decoding_hash{};
  std::vector<std::vector<PlaneProfile>> layers;  // [layer][plane]
  bool operator==(const ModelProfile&) const = default;
};

// Plain statistics as they are measured, [layers][kv_heads][head_dim] flattened row-major, keys and
// values of a layout made by MakeUniformLayout. Empty vectors where a statistic is unknown.
struct ProfileStatistics {
  // [layers, kv_heads, head_dim/2], one per pair of channels (i and i + head_dim/2, or 2i and 2i +
  // 1 for interleaved layouts), or [layers, kv_heads, head_dim].
  std::vector<float> query_energy;
  std::vector<float> key_mean, key_sigma, value_mean, value_sigma;  // [layers, kv_heads, head_dim]
};

// INVALID_ARGUMENT when a size does not fit the layout or a number is not finite or negative where
// it may not be. Channel order of `statistics` is the layout's own.
absl::StatusOr<ModelProfile> MakeProfile(const Layout& layout, const ProfileStatistics& statistics);

// Canonical bytes: decoding part, then query energy (docs/format/profile.md).
ByteVector SerializeProfile(const ModelProfile& profile);
// DATA_LOSS on malformed bytes, FAILED_PRECONDITION when it belongs to another layout.
absl::StatusOr<ModelProfile> ParseProfile(ByteSpan bytes, const Layout& layout);

// SHA-256 of the decoding part (statistics and steps): what frames refer to.
Digest ProfileHash(const ModelProfile& profile);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_LAYOUT_MODEL_PROFILE_H_
