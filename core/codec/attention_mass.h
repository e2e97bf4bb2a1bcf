// The attention that tokens received, as the logarithms that steps are made of.
#ifndef LATTICEKV_CORE_CODEC_ATTENTION_MASS_H_
#define LATTICEKV_CORE_CODEC_ATTENTION_MASS_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "core/codec/codec.h"

namespace latticekv {

// What AttentionMass::levels of every chunk of a text should be: for each layer the mean over the
// text of log2 of the attention that each query paid to a token. `mass` is of `tokens` tokens from
// `start_position` on; the sinks, and what `keep` (empty: nothing) evicts, are left out. All of
// `mass` must be finite.
std::vector<float> MassLevels(const AttentionMass& mass, size_t layers, uint32_t tokens,
                              uint64_t start_position, const std::vector<uint8_t>& keep = {});

// INVALID_ARGUMENT unless mass and levels are numbers that steps can be made of.
absl::Status CheckMass(const AttentionMass& mass, size_t layers, uint32_t tokens);

// 16 log2 of the attention that each query paid to each of a layer's tokens.
std::vector<int32_t> MassPerQuery16(const AttentionMass& mass, size_t layer, uint32_t tokens);

// The layer's level in the same unit, if the writer knows it.
std::optional<int32_t> MassLevel16(const AttentionMass& mass, size_t layer);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_ATTENTION_MASS_H_
