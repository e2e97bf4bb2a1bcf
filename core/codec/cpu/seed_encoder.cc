#include <zstd.h>

#include <algorithm>

#include "core/codec/cpu/seed_transform.h"
#include "core/codec/cpu/unit_encoder.h"
#include "core/codec/seed_arithmetic.h"
#include "core/codec/seed_codec.h"
#include "core/codec/tile_format.h"

namespace latticekv {
namespace {

// As the source counts its bytes: zstd's highest level.
constexpr int kZstdLevel = 22;

}  // namespace

SeedShape SeedShapeOf(const PlaneSpec& spec, const SeedOptions& options) {
  return {spec.role == PlaneRole::kKey ? options.key_bits : options.value_bits,
          options.group_scales, options.token_delta};
}

uint32_t SeedPlane::Rows(size_t head) const {
  return static_cast<uint32_t>(std::count(raw[head].begin(), raw[head].end(), 0));
}

namespace {

// Adds the errors of a head's rows, the first of which is `at`.
void MeasureHead(const LatticeContext& context, const UnitRef& unit, const UnitData& data,
                 const SeedPlane& plane, size_t at, LayerErrors& errors) {
  const PlaneSpec& spec = *unit.spec;
  const uint32_t dim = spec.head_dim, groups = dim / plane.shape.Group(dim);
  const bool key = spec.role == PlaneRole::kKey;
  const HeadProfile* profile = context.head_profile(unit.plane, unit.head);
  const bool profiled = key && profile != nullptr && !profile->query_energy.empty();
  const std::vector<uint32_t> order = CanonicalChannels(spec);
  SeedReconstructor reconstruct(spec, context.rope.Table(spec.rope), plane.shape.Group(dim));
  std::vector<float> row(dim), back(dim), exact(dim);
  ByteVector stored(dim * DTypeBytes(spec.dtype));
  for (uint32_t t = 0; t < context.tokens; ++t) {
    if (data.raw[t]) continue;
    reconstruct.Row(t, &plane.points[at * dim], &plane.scales[at * groups], row.data());
    StoreRow(spec.dtype, row.data(), dim, stored.data());
    LoadRow(spec.dtype, stored.data(), dim, back.data());
    LoadRow(spec.dtype, data.Stored(t), dim, exact.data());
    SeedRowError error;
    for (uint32_t c = 0; c < dim; ++c) {
      error.Add(exact[order[c]], back[order[c]], profiled ? profile->query_energy[c] : 1.0f);
    }
    (key ? errors.within.key_error_sum : errors.within.value_error_sum) +=
        error.Squared(dim, profiled);
    (key ? errors.within.key_vectors : errors.within.value_vectors) += 1;
    ++at;
  }
}

// Each row becomes its difference to the head's row before it, modulo 256.
void TakeDifferences(uint32_t dim, SeedPlane& plane) {
  size_t at = plane.points.size();
  for (size_t h = plane.raw.size(); h-- > 0;) {
    const size_t elements = size_t{plane.Rows(h)} * dim;
    at -= elements;
    for (size_t i = elements; i-- > dim;) {
      plane.points[at + i] = static_cast<int8_t>(plane.points[at + i] - plane.points[at + i - dim]);
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

// Codes the vectors of one plane.
SeedPlane EncodePlane(const LatticeContext& context, const LatticeChoices& choices,
                      const SeedShape& shape, size_t p, const PlaneView& view,
                      LayerErrors& errors) {
  const PlaneSpec& spec = context.layer.planes[p];
  const uint32_t dim = spec.head_dim, group = shape.Group(dim), groups = dim / group;
  const size_t most = size_t{spec.heads} * context.tokens;
  SeedPlane out{shape, {}, std::vector<uint16_t>(most * groups), std::vector<int8_t>(most * dim)};
  UnitData data;
  size_t rows = 0;
  for (uint32_t h = 0; h < spec.heads; ++h) {
    const UnitRef unit{p, h, &spec};
    LoadUnit(context, choices, unit, view, data);
    const size_t first = rows;
    for (uint32_t t = 0; t < context.tokens; ++t) {
      if (data.raw[t]) continue;
      const bool coded = EncodeSeedRow(&data.canonical[size_t{t} * dim], dim, group, shape.bound(),
                                       &out.scales[rows * groups], &out.points[rows * dim]);
      data.raw[t] = !coded;
      rows += coded;
    }
    MeasureHead(context, unit, data, out, first, errors);
    out.raw.push_back(data.raw);
  }
  out.scales.resize(rows * groups);
  out.points.resize(rows * dim);
  if (shape.token_delta) TakeDifferences(dim, out);
  return out;
}

}  // namespace

void AppendSeedPlane(const PlaneSpec& spec, const SeedPlane& plane, const PlaneView& view,
                     ByteWriter& out) {
  out.Put(static_cast<uint8_t>(plane.shape.bits));
  out.Put(static_cast<uint8_t>((plane.shape.group_scales ? kSeedGroupScales : 0) |
                               (plane.shape.token_delta ? kSeedTokenDelta : 0)));
  for (size_t h = 0; h < plane.raw.size(); ++h) {
    const std::vector<uint8_t>& raw = plane.raw[h];
    const size_t count = raw.size() - plane.Rows(h);
    out.Put(static_cast<uint16_t>(count));
    for (size_t t = 0; t < raw.size() && count < raw.size(); ++t) {
      if (raw[t]) out.Put(static_cast<uint8_t>(t));
    }
  }
  const size_t vector_bytes = spec.head_dim * DTypeBytes(spec.dtype);
  for (size_t h = 0; h < plane.raw.size(); ++h) {
    for (size_t t = 0; t < plane.raw[h].size(); ++t) {
      if (!plane.raw[h][t]) continue;
      out.PutBytes({view.data + t * view.token_stride + h * view.head_stride, vector_bytes});
    }
  }
  for (uint16_t scale : plane.scales) out.Put(scale);
  AppendPoints(plane.points, out);
}

EncodedLayer EncodeSeedLayer(const LatticeContext& context, const LatticeChoices& choices,
                             const SeedOptions& options, const std::vector<PlaneView>& planes) {
  EncodedLayer out;
  ByteWriter bytes;
  for (size_t p = 0; p < context.layer.planes.size(); ++p) {
    const PlaneSpec& spec = context.layer.planes[p];
    if (spec.role == PlaneRole::kOpaque) continue;
    const SeedPlane plane =
        EncodePlane(context, choices, SeedShapeOf(spec, options), p, planes[p], out.errors);
    AppendSeedPlane(spec, plane, planes[p], bytes);
  }
  for (size_t p = 0; p < context.layer.planes.size(); ++p) {
    if (context.layer.planes[p].role != PlaneRole::kOpaque) continue;
    AppendExactPlane(context.layer.planes[p], context.tokens, planes[p], bytes);
  }
  out.bytes = bytes.Take();
  return out;
}

}  // namespace latticekv
