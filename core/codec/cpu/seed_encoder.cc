#include <zstd.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/codec/cpu/seed_transform.h"
#include "core/codec/cpu/unit_encoder.h"
#include "core/codec/fixed_point.h"
#include "core/codec/seed_codec.h"
#include "core/codec/tile_format.h"

namespace latticekv {
namespace {

// As the source counts its bytes: zstd's highest level.
constexpr int kZstdLevel = 22;
// f16 scales of a vector's largest coordinate outside of these lose it: such vectors stay raw.
constexpr float kLeastScale = 0x1p-14f, kLargestScale = 65504.0f;

// Nearest point, doubled, of a group of 8 in units of its scale. The source's lattice: integers
// with an even sum, or half-integers of any sum, which it found to do better than strict E8.
void NearestRelaxed(const float* x, int bound, int8_t* points) {
  int32_t whole[8], half[8];
  int32_t sum = 0;
  int worst = 0;
  float gap = -1;
  for (int i = 0; i < 8; ++i) {
    whole[i] = RoundSmall(x[i]);
    half[i] = 2 * RoundSmall(x[i] - 0.5f) + 1;
    sum += whole[i];
    const float g = std::abs(x[i] - static_cast<float>(whole[i]));
    if (g > gap) {
      gap = g;
      worst = i;
    }
  }
  if (sum & 1) whole[worst] += x[worst] >= static_cast<float>(whole[worst]) ? 1 : -1;
  float whole_distance = 0, half_distance = 0;
  for (int i = 0; i < 8; ++i) {
    const float a = x[i] - static_cast<float>(whole[i]);
    const float b = x[i] - 0.5f * static_cast<float>(half[i]);
    whole_distance += a * a;
    half_distance += b * b;
  }
  for (int i = 0; i < 8; ++i) {
    const int32_t p = half_distance < whole_distance ? half[i] : 2 * whole[i];
    points[i] = static_cast<int8_t>(std::clamp(p, -bound, bound));
  }
}

struct PlaneCode {
  uint32_t group = 0;                     // coordinates that share a scale
  int bound = 0;                          // of doubled points
  std::vector<std::vector<uint8_t>> raw;  // [head][token]
  std::vector<uint16_t> scales;           // [head][coded row][group]
  std::vector<int8_t> points;             // [head][coded row][channel]
};

// Codes one row of a head; false when it must be stored raw instead.
bool EncodeRow(const float* canonical, uint32_t dim, std::vector<float>& x, PlaneCode& out) {
  x.assign(canonical, canonical + dim);
  Hadamard(x.data(), dim);
  const float steps = static_cast<float>(out.bound / 2);
  float largest = 0;
  for (float v : x) largest = std::max(largest, std::abs(v));
  // Sums of huge values may be infinite, and then NaN.
  const bool finite = std::all_of(x.begin(), x.end(), [](float v) { return std::isfinite(v); });
  const float scale = largest / steps;
  if (!finite || scale > kLargestScale || (largest > 0 && scale < kLeastScale)) return false;
  for (uint32_t g = 0; g < dim; g += out.group) {
    float top = 0;
    for (uint32_t c = g; c < g + out.group; ++c) top = std::max(top, std::abs(x[c]));
    const uint16_t bits = FloatToHalf(top / steps);
    const float inverse = HalfToFloat(bits);
    out.scales.push_back(bits);
    for (uint32_t c = g; c < g + out.group; ++c) x[c] = inverse > 0 ? x[c] / inverse : 0;
  }
  const size_t at = out.points.size();
  out.points.resize(at + dim);
  for (uint32_t c = 0; c < dim; c += 8) NearestRelaxed(&x[c], out.bound, &out.points[at + c]);
  return true;
}

// Squared error of a vector in units of 2^-28: relative, or of a logit where energies are known.
// Sums in binary64 in the order of channels.
uint64_t SquaredError(const float* exact, const float* back, uint32_t dim,
                      const std::vector<float>* energy, const std::vector<uint32_t>& order) {
  double error = 0, norm = 0;
  for (uint32_t c = 0; c < dim; ++c) {
    const double d = double{back[order[c]]} - exact[order[c]];
    error += energy ? (*energy)[c] * d * d : d * d;
    norm += double{exact[order[c]]} * exact[order[c]];
  }
  const double ratio = energy ? error / dim : norm > 0 ? error / norm : 0;
  return static_cast<uint64_t>(std::min(ratio * 0x1p28, 0x1p40));
}

void MeasureHead(const LatticeContext& context, const UnitRef& unit, const UnitData& data,
                 const std::vector<uint8_t>& raw, const PlaneCode& code, size_t first_row,
                 LayerErrors& errors) {
  const PlaneSpec& spec = *unit.spec;
  const uint32_t dim = spec.head_dim, groups = dim / code.group;
  const bool key = spec.role == PlaneRole::kKey;
  const HeadProfile* profile = context.head_profile(unit.plane, unit.head);
  const bool profiled = key && profile != nullptr && !profile->query_energy.empty();
  const std::vector<uint32_t> order = CanonicalChannels(spec);
  SeedReconstructor reconstruct(spec, context.rope.Table(spec.rope), code.group);
  std::vector<float> row(dim), back(dim), exact(dim);
  ByteVector stored(dim * DTypeBytes(spec.dtype));
  size_t at = first_row;
  for (uint32_t t = 0; t < context.tokens; ++t) {
    if (raw[t]) continue;
    reconstruct.Row(t, &code.points[at * dim], &code.scales[at * groups], row.data());
    StoreRow(spec.dtype, row.data(), dim, stored.data());
    LoadRow(spec.dtype, stored.data(), dim, back.data());
    LoadRow(spec.dtype, data.Stored(t), dim, exact.data());
    const uint64_t e = SquaredError(exact.data(), back.data(), dim,
                                    profiled ? &profile->query_energy : nullptr, order);
    (key ? errors.within.key_error_sum : errors.within.value_error_sum) += e;
    (key ? errors.within.key_vectors : errors.within.value_vectors) += 1;
    ++at;
  }
}

// Each row becomes its difference to the head's row before it, modulo 256.
void TakeDifferences(const PlaneCode& code, uint32_t dim, std::vector<int8_t>& points) {
  size_t at = points.size();
  for (size_t h = code.raw.size(); h-- > 0;) {
    const auto rows = static_cast<size_t>(std::count(code.raw[h].begin(), code.raw[h].end(), 0));
    at -= rows * dim;
    for (size_t i = rows * dim; i-- > dim;) {
      points[at + i] = static_cast<int8_t>(points[at + i] - points[at + i - dim]);
    }
  }
}

void AppendPoints(std::span<const int8_t> points, ByteWriter& out) {
  const ByteSpan bytes = std::as_bytes(points);
  ByteVector packed(ZSTD_compressBound(bytes.size()));
  const size_t size =
      ZSTD_compress(packed.data(), packed.size(), bytes.data(), bytes.size(), kZstdLevel);
  const bool pays = !ZSTD_isError(size) && size < bytes.size();
  const ByteSpan body = pays ? ByteSpan(packed).first(size) : bytes;
  out.Put<uint32_t>(static_cast<uint32_t>(body.size()));
  out.PutBytes(body);
}

void AppendPlane(const PlaneSpec& spec, const SeedOptions& options, const PlaneView& view,
                 PlaneCode& code, ByteWriter& out) {
  const bool key = spec.role == PlaneRole::kKey;
  out.Put(static_cast<uint8_t>(key ? options.key_bits : options.value_bits));
  out.Put(static_cast<uint8_t>((options.group_scales ? kSeedGroupScales : 0) |
                               (options.token_delta ? kSeedTokenDelta : 0)));
  for (const std::vector<uint8_t>& raw : code.raw) {
    const auto count = static_cast<size_t>(std::count(raw.begin(), raw.end(), 1));
    out.Put(static_cast<uint16_t>(count));
    for (size_t t = 0; t < raw.size() && count < raw.size(); ++t) {
      if (raw[t]) out.Put(static_cast<uint8_t>(t));
    }
  }
  const size_t vector_bytes = spec.head_dim * DTypeBytes(spec.dtype);
  for (size_t h = 0; h < code.raw.size(); ++h) {
    for (size_t t = 0; t < code.raw[h].size(); ++t) {
      if (!code.raw[h][t]) continue;
      out.PutBytes({view.data + t * view.token_stride + h * view.head_stride, vector_bytes});
    }
  }
  for (uint16_t scale : code.scales) out.Put(scale);
  if (options.token_delta) TakeDifferences(code, spec.head_dim, code.points);
  AppendPoints(code.points, out);
}

}  // namespace

EncodedLayer EncodeSeedLayer(const LatticeContext& context, const LatticeChoices& choices,
                             const SeedOptions& options, const std::vector<PlaneView>& planes) {
  EncodedLayer out;
  ByteWriter bytes;
  UnitData data;
  std::vector<float> scratch;
  for (size_t p = 0; p < context.layer.planes.size(); ++p) {
    const PlaneSpec& spec = context.layer.planes[p];
    if (spec.role == PlaneRole::kOpaque) continue;
    PlaneCode code;
    code.group = options.group_scales ? 8 : spec.head_dim;
    code.bound = 1 << (spec.role == PlaneRole::kKey ? options.key_bits : options.value_bits);
    for (uint32_t h = 0; h < spec.heads; ++h) {
      const UnitRef unit{p, h, &spec};
      LoadUnit(context, choices, unit, planes[p], data);
      const size_t first_row = code.points.size() / spec.head_dim;
      for (uint32_t t = 0; t < context.tokens; ++t) {
        if (data.raw[t]) continue;
        const float* row = &data.canonical[size_t{t} * spec.head_dim];
        data.raw[t] = !EncodeRow(row, spec.head_dim, scratch, code);
      }
      MeasureHead(context, unit, data, data.raw, code, first_row, out.errors);
      code.raw.push_back(data.raw);
    }
    AppendPlane(spec, options, planes[p], code, bytes);
  }
  for (size_t p = 0; p < context.layer.planes.size(); ++p) {
    if (context.layer.planes[p].role != PlaneRole::kOpaque) continue;
    AppendExactPlane(context.layer.planes[p], context.tokens, planes[p], bytes);
  }
  out.bytes = bytes.Take();
  return out;
}

}  // namespace latticekv
