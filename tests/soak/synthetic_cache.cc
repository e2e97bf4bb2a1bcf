#include "tests/soak/synthetic_cache.h"

#include <bit>
#include <cstring>
#include <utility>

#include "core/base/status_macros.h"

namespace latticekv {
namespace {

constexpr uint32_t kLayers = 3, kHeads = 2, kHeadDim = 64;

// The channel's mean and spread: a few channels are large, as in real keys.
float ChannelMean(uint32_t layer, uint32_t plane, uint32_t channel) {
  const uint64_t r = Mix(layer * 131 + plane * 17 + channel);
  return (r % 5 == 0 ? 4.0f : 0.5f) * (static_cast<float>(r >> 40) / (1 << 23) - 1.0f);
}

float ChannelSigma(uint32_t layer, uint32_t plane, uint32_t channel) {
  return 0.25f + static_cast<float>(Mix(layer * 977 + plane * 31 + channel) >> 40) / (1 << 24);
}

// Sum of four uniform numbers: near enough to normal, with unit variance.
float Noise(uint64_t* state) {
  *state = Mix(*state);
  int sum = 0;
  for (int i = 0; i < 4; ++i) sum += static_cast<int>((*state >> (16 * i)) & 0xFFFF) - 32768;
  return static_cast<float>(sum) * (1.0f / 37837.0f);
}

// Finite and normal in every dtype; conversion by truncation is enough for made-up data.
void Store(float x, DType dtype, std::byte* out) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (dtype == DType::kF32) {
    std::memcpy(out, &bits, 4);
    return;
  }
  uint16_t half = static_cast<uint16_t>(bits >> 16);
  if (dtype == DType::kF16) {
    const int exponent = static_cast<int>((bits >> 23) & 0xFF) - 112;
    half = static_cast<uint16_t>((bits >> 16) & 0x8000);
    if (exponent > 0) half |= static_cast<uint16_t>((exponent << 10) | ((bits >> 13) & 0x3FF));
  }
  std::memcpy(out, &half, 2);
}

ProfileStatistics Statistics() {
  ProfileStatistics s;
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    for (uint32_t head = 0; head < kHeads; ++head) {
      for (uint32_t d = 0; d < kHeadDim; ++d) {
        const uint32_t channel = head * kHeadDim + d;
        s.key_mean.push_back(ChannelMean(layer, 0, channel));
        s.key_sigma.push_back(ChannelSigma(layer, 0, channel));
        s.value_mean.push_back(ChannelMean(layer, 1, channel));
        s.value_sigma.push_back(ChannelSigma(layer, 1, channel));
        if (d < kHeadDim / 2) s.query_energy.push_back(0.1f + static_cast<float>(d % 7));
      }
    }
  }
  return s;
}

}  // namespace

absl::StatusOr<SyntheticModel> SyntheticModel::Create(std::string name, DType dtype,
                                                      RopeStyle style, bool profiled) {
  SyntheticModel model;
  RopeSpec rope;
  rope.style = style;
  rope.rotary_dims = style == RopeStyle::kNone ? 0 : kHeadDim;
  model.layout_ = MakeUniformLayout(std::move(name), kLayers, kHeads, kHeadDim, dtype, rope);
  model.profiled_ = profiled;
  if (profiled) {
    LKV_ASSIGN_OR_RETURN(model.profile_, MakeProfile(model.layout_, Statistics()));
  }
  return model;
}

std::vector<std::vector<ByteVector>> SyntheticModel::Planes(std::span<const uint32_t> tokens,
                                                            size_t first) const {
  std::vector<std::vector<ByteVector>> out(kLayers);
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    for (const PlaneSpec& plane : layout_.layers[layer].planes) {
      out[layer].emplace_back(plane.token_bytes() * (tokens.size() - first));
    }
  }
  uint64_t history = 0;
  for (size_t t = 0; t < tokens.size(); ++t) {
    history = Mix(history ^ tokens[t]);
    if (t < first) continue;
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      for (uint32_t p = 0; p < out[layer].size(); ++p) {
        const PlaneSpec& plane = layout_.layers[layer].planes[p];
        const size_t element = DTypeBytes(plane.dtype);
        std::byte* at = out[layer][p].data() + plane.token_bytes() * (t - first);
        uint64_t state = history + layer * 64 + p;
        for (uint32_t channel = 0; channel < kHeads * kHeadDim; ++channel) {
          const float x =
              ChannelMean(layer, p, channel) + ChannelSigma(layer, p, channel) * Noise(&state);
          Store(x, plane.dtype, at + channel * element);
        }
      }
    }
  }
  return out;
}

std::vector<std::vector<PlaneView>> ViewsOf(const Layout& layout,
                                            const std::vector<std::vector<ByteVector>>& planes) {
  std::vector<std::vector<PlaneView>> views(planes.size());
  for (size_t layer = 0; layer < planes.size(); ++layer) {
    for (size_t p = 0; p < planes[layer].size(); ++p) {
      views[layer].push_back(ContiguousPlane<const std::byte>(layout.layers[layer].planes[p],
                                                              planes[layer][p].data()));
    }
  }
  return views;
}

absl::StatusOr<SyntheticModel::Expected> SyntheticModel::AfterCodec(
    std::span<const uint32_t> tokens, size_t first, PresetId preset) const {
  Expected out;
  out.planes = Planes(tokens, first);
  EncodeOptions options;
  options.preset = preset;
  options.profile = profile();
  options.start_position = first;
  const auto count = static_cast<uint32_t>(tokens.size() - first);
  LKV_ASSIGN_OR_RETURN(const ByteVector frame,
                       EncodeFrame(layout_, count, ViewsOf(layout_, out.planes), options));
  LKV_ASSIGN_OR_RETURN(const FrameDecoder decoder, FrameDecoder::Open(frame, layout_, profile()));
  out.quality = decoder.info().quality;
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    std::vector<MutablePlaneView> views;
    for (size_t p = 0; p < out.planes[layer].size(); ++p) {
      views.push_back(
          ContiguousPlane(layout_.layers[layer].planes[p], out.planes[layer][p].data()));
    }
    LKV_RETURN_IF_ERROR(decoder.DecodeLayer(layer, views));
  }
  return out;
}

}  // namespace latticekv
