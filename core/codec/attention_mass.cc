#include "core/codec/attention_mass.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "core/codec/fixed_point.h"

namespace latticekv {
namespace {

// Below this, attention is noise: the tail of a softmax over many tokens.
constexpr float kLeastMass = 1e-4f;
// Added to the number of queries, so that one query's whim does not set the last tokens' steps.
constexpr uint64_t kMassPriorQueries = 32;
// No float's logarithm is larger.
constexpr float kMaxLevel = 256;

int32_t PerQuery16(const AttentionMass& mass, size_t layer, uint32_t token) {
  const float m = std::max(mass.data[layer * mass.layer_stride + token], kLeastMass);
  const uint64_t queries = std::max<uint64_t>(mass.queries, token) - token + kMassPriorQueries;
  return FloatLog2Sixteenths(m) - Log2Sixteenths(queries);
}

}  // namespace

std::vector<float> MassLevels(const AttentionMass& mass, size_t layers, uint32_t tokens,
                              uint64_t start_position, const std::vector<uint8_t>& keep) {
  std::vector<float> out;
  for (size_t l = 0; l < layers; ++l) {
    int64_t sum = 0, n = 0;
    for (uint32_t t = 0; t < tokens; ++t) {
      if (start_position + t < kSinkTokens || (!keep.empty() && keep[t] == 0)) continue;
      sum += PerQuery16(mass, l, t);
      ++n;
    }
    out.push_back(static_cast<float>(sum) / static_cast<float>(16 * std::max<int64_t>(n, 1)));
  }
  return out;
}

absl::Status CheckMass(const AttentionMass& mass, size_t layers, uint32_t tokens) {
  for (size_t l = 0; l < layers && mass.data != nullptr; ++l) {
    if (mass.levels != nullptr && !(std::abs(mass.levels[l]) <= kMaxLevel)) {
      return absl::InvalidArgumentError(
          absl::StrCat("the attention level of layer ", l, " is no logarithm of an attention"));
    }
    for (uint32_t t = 0; t < tokens; ++t) {
      const float m = mass.data[l * mass.layer_stride + t];
      if (std::isfinite(m) && m >= 0) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("attention mass of layer ", l, " token ", t, " is not a number from 0 on"));
    }
  }
  return absl::OkStatus();
}

std::vector<int32_t> MassPerQuery16(const AttentionMass& mass, size_t layer, uint32_t tokens) {
  std::vector<int32_t> out;
  for (uint32_t t = 0; t < tokens; ++t) out.push_back(PerQuery16(mass, layer, t));
  return out;
}

std::optional<int32_t> MassLevel16(const AttentionMass& mass, size_t layer) {
  if (mass.levels == nullptr) return std::nullopt;
  return static_cast<int32_t>(std::lround(16 * mass.levels[layer]));
}

}  // namespace latticekv
