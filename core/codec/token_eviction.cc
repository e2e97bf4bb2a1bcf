#include "core/codec/token_eviction.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"

namespace latticekv {
namespace {

// As many queries are added to those that could see a token, so that the last ones' few do not
// decide.
constexpr double kPriorQueries = 32;

size_t VectorBytes(const PlaneSpec& plane) { return plane.head_dim * DTypeBytes(plane.dtype); }

}  // namespace

absl::StatusOr<std::vector<uint8_t>> ChooseKeptTokens(const AttentionMass& mass, size_t layers,
                                                      uint32_t tokens, double fraction,
                                                      uint32_t chunk_tokens) {
  if (!(fraction > 0 && fraction <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the fraction of tokens to keep is ", fraction, "; it must be in (0, 1]"));
  }
  std::vector<double> score(tokens, 0), rate(tokens);
  for (size_t l = 0; l < layers; ++l) {
    double sum = 0;
    for (uint32_t t = 0; t < tokens; ++t) {
      const double m = mass.data[l * mass.layer_stride + t];
      if (!(std::isfinite(m) && m >= 0)) {
        return absl::InvalidArgumentError(absl::StrCat("attention mass of layer ", l, " token ", t,
                                                       " is not a number from 0 on"));
      }
      const double queries = mass.queries > t ? static_cast<double>(mass.queries - t) : 0;
      rate[t] = m / (queries + kPriorQueries);
      if (t >= kSinkTokens) sum += rate[t];
    }
    for (uint32_t t = 0; t < tokens && sum > 0; ++t) score[t] += rate[t] / sum;
  }
  std::vector<uint8_t> keep(tokens, 0);
  std::vector<uint32_t> order(tokens);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return score[a] > score[b]; });
  for (uint32_t t = 0; t < tokens; ++t) keep[t] = t < kSinkTokens || t + kRecentTokens >= tokens;
  std::vector<uint8_t> chunk_has((tokens + chunk_tokens - 1) / chunk_tokens, 0);
  for (uint32_t t : order) {
    uint8_t& has = chunk_has[t / chunk_tokens];
    if (!has) keep[t] = has = 1;
  }
  const auto wanted = static_cast<int64_t>(std::ceil(fraction * tokens));
  int64_t kept = std::count(keep.begin(), keep.end(), 1);
  for (size_t i = 0; i < order.size() && kept < wanted; ++i) {
    kept += !keep[order[i]];
    keep[order[i]] = 1;
  }
  return keep;
}

absl::Status CheckKeep(const Layout& layout, uint32_t tokens, const std::vector<uint8_t>& keep) {
  if (keep.empty()) return absl::OkStatus();
  if (keep.size() != tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("the keep mask has ", keep.size(), " entries for ", tokens, " tokens"));
  }
  if (std::none_of(keep.begin(), keep.end(), [](uint8_t k) { return k != 0; })) {
    return absl::InvalidArgumentError("the keep mask evicts every token of the chunk; keep one");
  }
  for (const LayerSpec& layer : layout.layers) {
    for (const PlaneSpec& plane : layer.planes) {
      if (plane.role != PlaneRole::kOpaque) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("tokens cannot be evicted from opaque plane '", plane.name, "'"));
    }
  }
  return absl::OkStatus();
}

std::vector<std::vector<PlaneView>> GatherKept(const Layout& layout,
                                               const std::vector<std::vector<PlaneView>>& planes,
                                               const std::vector<uint8_t>& keep, ByteVector& raw) {
  const auto rows = static_cast<uint32_t>(keep.size() - std::count(keep.begin(), keep.end(), 0));
  raw.resize(layout.token_bytes() * rows);
  std::byte* at = raw.data();
  for (size_t l = 0; l < layout.layers.size(); ++l) {
    for (size_t p = 0; p < layout.layers[l].planes.size(); ++p) {
      const PlaneSpec& plane = layout.layers[l].planes[p];
      const PlaneView& view = planes[l][p];
      for (size_t t = 0; t < keep.size(); ++t) {
        if (!keep[t]) continue;
        for (uint32_t h = 0; h < plane.heads; ++h) {
          const std::byte* row = view.data + t * view.token_stride + h * view.head_stride;
          at = std::copy_n(row, VectorBytes(plane), at);
        }
      }
    }
  }
  return RawChunkViews(layout, rows, raw);
}

void SpreadKept(const LayerSpec& layer, const std::vector<uint8_t>& keep,
                const std::vector<MutablePlaneView>& planes) {
  const size_t rows = keep.size() - std::count(keep.begin(), keep.end(), 0);
  for (size_t p = 0; p < planes.size(); ++p) {
    const MutablePlaneView& view = planes[p];
    const size_t bytes = VectorBytes(layer.planes[p]);
    for (uint32_t h = 0; h < layer.planes[p].heads; ++h) {
      std::byte* head = view.data + h * view.head_stride;
      // From the last on: a token never lies before its row.
      size_t row = rows;
      for (size_t t = keep.size(); t-- > 0;) {
        std::byte* to = head + t * view.token_stride;
        if (!keep[t]) {
          std::fill_n(to, bytes, std::byte{0});
        } else if (--row != t) {
          std::copy_n(head + row * view.token_stride, bytes, to);
        }
      }
    }
  }
}

}  // namespace latticekv
