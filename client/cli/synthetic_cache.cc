#include "client/cli/synthetic_cache.h"

#include <cmath>
#include <random>
#include <vector>

#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/codec/codec.h"
#include "core/codec/cpu/float_cast.h"
#include "core/layout/rope.h"

namespace latticekv {
namespace {

constexpr uint32_t kModelSeed = 20240607;
// As measured on SmolLM2: most of a key's energy is its channels' mean.
constexpr float kKeyMeanSpread = 2.0f;
constexpr float kLogSpread = 0.4f;

struct Channels {
  std::vector<float> mean, sigma;
};

Channels DrawChannels(const PlaneSpec& plane, std::mt19937& random) {
  const bool key = plane.role == PlaneRole::kKey;
  std::normal_distribution<float> normal;
  Channels out;
  for (uint32_t c = 0; c < plane.head_dim; ++c) {
    out.mean.push_back((key ? kKeyMeanSpread : 0.1f) * normal(random));
    out.sigma.push_back(std::exp(kLogSpread * normal(random)));
  }
  return out;
}

void ApplyRope(const RopeSpec& rope, const SinCos* table, std::vector<float>& row) {
  const uint32_t pairs = rope.rotary_dims / 2;
  for (uint32_t i = 0; i < pairs && rope.style == RopeStyle::kNeox; ++i) {
    const float x = row[i], y = row[i + pairs];
    row[i] = x * table[i].cos - y * table[i].sin;
    row[i + pairs] = y * table[i].cos + x * table[i].sin;
  }
}

}  // namespace

FlagSpec LayersFlag() { return {"layers", "N", "of the made-up cache (default 30)"}; }
FlagSpec HeadsFlag() { return {"heads", "N", "KV heads (default 3)"}; }
FlagSpec HeadDimFlag() { return {"head-dim", "N", "channels of a head (default 64)"}; }

absl::StatusOr<Layout> ReadSyntheticLayout(const Arguments& arguments, const std::string& model) {
  LKV_ASSIGN_OR_RETURN(const uint64_t layers,
                       arguments.GetNumber("layers", 30, 1, limits::kMaxLayers));
  LKV_ASSIGN_OR_RETURN(const uint64_t heads, arguments.GetNumber("heads", 3, 1, limits::kMaxHeads));
  LKV_ASSIGN_OR_RETURN(const uint64_t head_dim,
                       arguments.GetNumber("head-dim", 64, 8, limits::kMaxHeadDim));
  const auto dim = static_cast<uint32_t>(head_dim);
  Layout out = MakeUniformLayout(model, static_cast<uint32_t>(layers), static_cast<uint32_t>(heads),
                                 dim, DType::kF16, {RopeStyle::kNeox, dim, 10000.0});
  if (absl::Status status = ValidateLayout(out); !status.ok()) {
    return UsageError(std::string(status.message()));
  }
  return out;
}

ByteVector MakeSyntheticChunk(const Layout& layout, uint64_t start, uint32_t tokens) {
  ByteVector out(layout.token_bytes() * tokens);
  std::mt19937 model(kModelSeed), noise(kModelSeed + static_cast<uint32_t>(start) + 1);
  std::normal_distribution<float> normal;
  std::byte* at = out.data();
  for (const LayerSpec& layer : layout.layers) {
    for (const PlaneSpec& plane : layer.planes) {
      const std::vector<SinCos> table = RopeTable(plane.rope, start, tokens);
      std::vector<Channels> heads;
      for (uint32_t h = 0; h < plane.heads; ++h) heads.push_back(DrawChannels(plane, model));
      std::vector<float> row(plane.head_dim);
      for (uint32_t t = 0; t < tokens; ++t) {
        for (const Channels& head : heads) {
          const bool key = plane.role == PlaneRole::kKey;
          const float norm = key ? 1.0f : std::exp(kLogSpread * normal(noise));
          for (uint32_t c = 0; c < plane.head_dim; ++c) {
            row[c] = norm * (head.mean[c] + head.sigma[c] * normal(noise));
          }
          ApplyRope(plane.rope, table.data() + size_t{t} * (plane.rope.rotary_dims / 2), row);
          StoreRow(plane.dtype, row.data(), plane.head_dim, at);
          at += plane.head_dim * DTypeBytes(plane.dtype);
        }
      }
    }
  }
  return out;
}

ModelProfile MakeSyntheticProfile(const Layout& layout) {
  std::mt19937 random(kModelSeed), model(kModelSeed);
  std::normal_distribution<float> normal;
  ProfileStatistics out;
  for (const LayerSpec& layer : layout.layers) {
    const PlaneSpec& key = layer.planes.front();
    for (uint32_t i = 0; i < key.heads * key.head_dim / 2; ++i) {
      out.query_energy.push_back(std::exp(normal(random)));
    }
    for (const PlaneSpec& plane : layer.planes) {
      const bool is_key = plane.role == PlaneRole::kKey;
      for (uint32_t h = 0; h < plane.heads; ++h) {
        const Channels head = DrawChannels(plane, model);
        float square = 0;
        for (uint32_t c = 0; c < plane.head_dim; ++c) {
          square += head.mean[c] * head.mean[c] + head.sigma[c] * head.sigma[c];
        }
        // Values are told over a token's rms.
        const float unit = is_key ? 1.0f : std::sqrt(square / static_cast<float>(plane.head_dim));
        for (uint32_t c = 0; c < plane.head_dim; ++c) {
          (is_key ? out.key_mean : out.value_mean).push_back(head.mean[c] / unit);
          (is_key ? out.key_sigma : out.value_sigma).push_back(head.sigma[c] / unit);
        }
      }
    }
  }
  // The layout was validated and the numbers fit it.
  return *MakeProfile(layout, out);
}

}  // namespace latticekv
