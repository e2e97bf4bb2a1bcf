#include "core/codec/channel_statistics.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/codec/cpu/float_cast.h"
#include "core/layout/head_statistics.h"
#include "core/layout/rope.h"

namespace latticekv {
namespace {

// Values of a token whose rms is smaller than this count as zero (codec_model.py's bound).
constexpr double kMinRms = 1e-9;
// Larger ones count as this: squares of 2^20 tokens still fit their sum.
constexpr double kMaxValue = 1 << 20;
constexpr double kUnit = 4294967296.0;  // 2^32

// Rotates a key of one head back; `table` holds the token's sines and cosines, one per pair.
void RemoveRope(const RopeSpec& rope, const SinCos* table, float* key) {
  const uint32_t pairs = rope.rotary_dims / 2;
  for (uint32_t i = 0; i < pairs; ++i) {
    const bool neox = rope.style == RopeStyle::kNeox;
    float& x = key[neox ? i : 2 * i];
    float& y = key[neox ? i + pairs : 2 * i + 1];
    const float back_x = x * table[i].cos + y * table[i].sin;
    y = y * table[i].cos - x * table[i].sin;
    x = back_x;
  }
}

void DivideByRms(std::span<float> value) {
  double sum = 0;
  for (const float v : value) sum += double{v} * v;
  const double rms = std::max(std::sqrt(sum / static_cast<double>(value.size())), kMinRms);
  for (float& v : value) v = static_cast<float>(v / rms);
}

bool AllFinite(std::span<const float> row) {
  return std::all_of(row.begin(), row.end(), [](float v) { return std::isfinite(v); });
}

}  // namespace

ChannelStatistics::ChannelStatistics(Layout layout) : layout_(std::move(layout)) {
  for (const LayerSpec& layer : layout_.layers) {
    auto& planes = heads_.emplace_back();
    for (const PlaneSpec& plane : layer.planes) {
      auto& heads = planes.emplace_back();
      if (plane.role == PlaneRole::kOpaque) continue;
      heads.resize(plane.heads);
      for (Head& head : heads) head.channels.resize(plane.head_dim);
    }
  }
}

size_t ChannelStatistics::MemoryBytes(const Layout& layout) {
  size_t heads = 0, channels = 0;
  for (const LayerSpec& layer : layout.layers) {
    for (const PlaneSpec& plane : layer.planes) {
      if (plane.role == PlaneRole::kOpaque) continue;
      heads += plane.heads;
      channels += size_t{plane.heads} * plane.head_dim;
    }
  }
  return sizeof(ChannelStatistics) + heads * sizeof(Head) + channels * sizeof(Sums);
}

void ChannelStatistics::AddHead(const PlaneSpec& plane, const PlaneView& view, uint32_t head,
                                std::span<const uint8_t> counted, std::span<const SinCos> table,
                                Head& out) {
  const uint32_t pairs = plane.rope.rotary_dims / 2;
  std::vector<float> row(plane.head_dim);
  for (size_t t = 0; t < counted.size(); ++t) {
    if (!counted[t]) continue;
    LoadRow(plane.dtype, view.data + t * view.token_stride + head * view.head_stride,
            plane.head_dim, row.data());
    if (!AllFinite(row)) continue;
    if (plane.role == PlaneRole::kValue) {
      DivideByRms(row);
    } else if (pairs > 0) {
      RemoveRope(plane.rope, table.data() + t * pairs, row.data());
    }
    ++out.vectors;
    for (size_t c = 0; c < row.size(); ++c) {
      const double value = std::clamp<double>(row[c], -kMaxValue, kMaxValue);
      const auto units = static_cast<int64_t>(value * kUnit);
      out.channels[c].sum += units;
      out.channels[c].squares += static_cast<Int128>(units) * units;
    }
  }
}

void ChannelStatistics::Add(uint32_t tokens, uint64_t start_position,
                            const std::vector<std::vector<PlaneView>>& planes,
                            std::span<const uint8_t> keep) {
  std::vector<uint8_t> counted(tokens, 1);
  for (uint32_t t = 0; t < tokens; ++t) {
    counted[t] = start_position + t >= kSinkTokens && (keep.empty() || keep[t] != 0);
  }
  std::vector<SinCos> table;
  const RopeSpec* of = nullptr;  // whose table it is; most planes have that of the one before
  for (size_t l = 0; l < heads_.size(); ++l) {
    for (size_t p = 0; p < heads_[l].size(); ++p) {
      const PlaneSpec& plane = layout_.layers[l].planes[p];
      if (plane.role == PlaneRole::kKey && (of == nullptr || *of != plane.rope)) {
        table = RopeTable(plane.rope, start_position, tokens);
        of = &plane.rope;
      }
      for (uint32_t h = 0; h < heads_[l][p].size(); ++h) {
        AddHead(plane, planes[l][p], h, counted, table, heads_[l][p][h]);
      }
    }
  }
}

std::optional<ChannelStatistics::Moments> ChannelStatistics::MomentsOf(size_t layer,
                                                                       size_t plane) const {
  const std::vector<Head>& heads = heads_[layer][plane];
  Moments out;
  for (const Head& head : heads) {
    if (head.vectors == 0) return std::nullopt;
    const auto n = static_cast<long double>(head.vectors);
    for (const Sums& channel : head.channels) {
      const long double mean = static_cast<long double>(channel.sum) / n / kUnit;
      const long double square = static_cast<long double>(channel.squares) / n / kUnit / kUnit;
      out.mean.push_back(static_cast<float>(mean));
      out.sigma.push_back(
          static_cast<float>(std::sqrt(static_cast<double>(std::max(square - mean * mean, 0.0L)))));
    }
  }
  if (heads.empty()) return std::nullopt;
  return out;
}

ModelProfile ChannelStatistics::MakeProfile(const ModelProfile* base) const {
  ModelProfile out;
  if (base != nullptr) {
    out = *base;
  } else {
    out.layout_fingerprint = LayoutFingerprint(layout_);
    for (const LayerSpec& layer : layout_.layers) {
      auto& planes = out.layers.emplace_back(layer.planes.size());
      for (size_t p = 0; p < planes.size(); ++p) {
        if (layer.planes[p].role != PlaneRole::kOpaque) {
          planes[p].heads.resize(layer.planes[p].heads);
        }
      }
    }
  }
  for (size_t l = 0; l < out.layers.size(); ++l) {
    for (size_t p = 0; p < out.layers[l].size(); ++p) {
      const auto moments = MomentsOf(l, p);
      if (!moments) continue;
      const PlaneSpec& plane = layout_.layers[l].planes[p];
      const std::span mean(moments->mean), sigma(moments->sigma);
      for (uint32_t h = 0; h < plane.heads; ++h) {
        const size_t at = size_t{h} * plane.head_dim;
        SetHeadStatistics(plane, mean.subspan(at, plane.head_dim),
                          sigma.subspan(at, plane.head_dim), out.layers[l][p].heads[h]);
      }
    }
  }
  out.decoding_hash = ProfileHash(out);
  return out;
}

}  // namespace latticekv
