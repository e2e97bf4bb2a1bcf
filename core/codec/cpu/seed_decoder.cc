#include <zstd.h>

#include <algorithm>

#include "core/base/status_macros.h"
#include "core/codec/cpu/seed_transform.h"
#include "core/codec/frame_format.h"
#include "core/codec/seed_codec.h"

namespace latticekv {
namespace {

absl::Status Damaged(const char* what) {
  return absl::DataLossError(std::string("frame: seed layer: ") + what);
}

// Which vectors are raw, [head][token].
using RawLists = std::vector<std::vector<uint8_t>>;

absl::StatusOr<RawLists> ReadRawLists(uint32_t heads, uint32_t tokens, ByteReader& in) {
  RawLists out(heads, std::vector<uint8_t>(tokens, 0));
  for (std::vector<uint8_t>& raw : out) {
    const uint32_t count = in.Get<uint16_t>();
    if (count == tokens) {  // all of them: no list
      raw.assign(tokens, 1);
      continue;
    }
    int last = -1;
    for (uint32_t i = 0; i < count; ++i) {
      const int token = in.Get<uint8_t>();
      if (!in.ok() || token <= last || token >= static_cast<int>(tokens)) {
        return Damaged("bad list of raw vectors");
      }
      raw[token] = 1;
      last = token;
    }
  }
  return in.ok() ? absl::StatusOr<RawLists>(std::move(out)) : Damaged("truncated");
}

absl::Status ReadPoints(ByteReader& in, std::vector<int8_t>& points) {
  const size_t size = in.Get<uint32_t>();
  const ByteSpan body = in.GetBytes(size);
  if (!in.ok() || size > points.size()) return Damaged("bad size of points");
  const MutableByteSpan out = std::as_writable_bytes(std::span(points));
  if (size == points.size()) {
    std::copy(body.begin(), body.end(), out.begin());
    return absl::OkStatus();
  }
  const size_t got = ZSTD_decompress(out.data(), out.size(), body.data(), body.size());
  if (ZSTD_isError(got) || got != out.size()) return Damaged("bad zstd data");
  return absl::OkStatus();
}

void SumDifferences(uint32_t dim, SeedPlane& plane) {
  int8_t* points = plane.points.data();
  for (size_t h = 0; h < plane.raw.size(); ++h) {
    const size_t elements = size_t{plane.Rows(h)} * dim;
    for (size_t i = dim; i < elements; ++i) {
      points[i] = static_cast<int8_t>(points[i] + points[i - dim]);
    }
    points += elements;
  }
}

absl::Status DecodePlane(const LatticeContext& context, const PlaneSpec& spec, ByteReader& in,
                         const MutablePlaneView& view) {
  ByteSpan raw_vectors;
  LKV_ASSIGN_OR_RETURN(SeedPlane plane, ReadSeedPlane(spec, context.tokens, in, raw_vectors));
  const uint32_t dim = spec.head_dim, groups = dim / plane.shape.Group(dim);
  const size_t vector_bytes = dim * DTypeBytes(spec.dtype);
  if (plane.shape.token_delta) SumDifferences(dim, plane);
  const int bound = plane.shape.bound();
  for (int8_t p : plane.points) {
    if (p < -bound || p > bound) return Damaged("a point is out of range");
  }
  SeedReconstructor reconstruct(spec, context.rope.Table(spec.rope), plane.shape.Group(dim));
  std::vector<float> row(dim);
  size_t at = 0;
  for (uint32_t h = 0; h < spec.heads; ++h) {
    for (uint32_t t = 0; t < context.tokens; ++t) {
      std::byte* out = view.data + t * view.token_stride + h * view.head_stride;
      if (plane.raw[h][t]) {
        std::copy_n(raw_vectors.begin(), vector_bytes, out);
        raw_vectors = raw_vectors.subspan(vector_bytes);
        continue;
      }
      reconstruct.Row(t, &plane.points[at * dim], &plane.scales[at * groups], row.data());
      StoreRow(spec.dtype, row.data(), dim, out);
      ++at;
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SeedPlane> ReadSeedPlane(const PlaneSpec& spec, uint32_t tokens, ByteReader& in,
                                        ByteSpan& raw_vectors) {
  SeedPlane out;
  out.shape.bits = in.Get<uint8_t>();
  const int flags = in.Get<uint8_t>();
  if (!in.ok() || out.shape.bits < 1 || out.shape.bits > kMaxSeedBits ||
      flags & ~(kSeedGroupScales | kSeedTokenDelta)) {
    return Damaged("bad plane header");
  }
  out.shape.group_scales = flags & kSeedGroupScales;
  out.shape.token_delta = flags & kSeedTokenDelta;
  LKV_ASSIGN_OR_RETURN(out.raw, ReadRawLists(spec.heads, tokens, in));
  size_t rows = 0;
  for (uint32_t h = 0; h < spec.heads; ++h) rows += out.Rows(h);
  raw_vectors =
      in.GetBytes((size_t{spec.heads} * tokens - rows) * spec.head_dim * DTypeBytes(spec.dtype));
  if (!in.ok()) return Damaged("truncated raw vectors");
  out.scales.resize(rows * (spec.head_dim / out.shape.Group(spec.head_dim)));
  for (uint16_t& scale : out.scales) {
    scale = in.Get<uint16_t>();
    if (!in.ok() || scale >= 0x7C00) return Damaged("bad scale");
  }
  out.points.resize(rows * spec.head_dim);
  LKV_RETURN_IF_ERROR(ReadPoints(in, out.points));
  return out;
}

absl::StatusOr<SeedLayer> ReadSeedLayer(const LayerSpec& layer, uint32_t rows, ByteSpan bytes) {
  ByteReader in(bytes);
  SeedLayer out;
  for (const PlaneSpec& spec : layer.planes) {
    if (spec.role == PlaneRole::kOpaque) continue;
    ByteSpan raw;
    SeedLayer::Plane& plane = out.planes.emplace_back();
    LKV_ASSIGN_OR_RETURN(plane.coded, ReadSeedPlane(spec, rows, in, raw));
    plane.raw_bytes = raw.size();
    if (!raw.empty()) plane.raw_at = static_cast<size_t>(raw.data() - bytes.data());
  }
  out.opaque_at = bytes.size() - in.remaining();
  return out;
}

absl::StatusOr<SeedLayers> ReadSeedLayers(const Layout& layout, ByteSpan frame,
                                          uint32_t first_layer, uint32_t layers) {
  LKV_ASSIGN_OR_RETURN(const ParsedFrame parsed, ParseFrameHeader(frame));
  const FrameHeader& header = parsed.header;
  const size_t all = layout.layers.size();
  if (!(header.stages & kStageSeed) || header.layers.size() != all || first_layer > all ||
      layers > all - first_layer) {
    return Damaged("other layers than asked for");
  }
  SeedLayers out;
  for (uint32_t l = first_layer; l < first_layer + layers; ++l) {
    const uint64_t at = parsed.layer_offsets[l];
    LKV_ASSIGN_OR_RETURN(out.layers.emplace_back(),
                         ReadSeedLayer(layout.layers[l], StoredRows(header),
                                       frame.subspan(at, parsed.layer_offsets[l + 1] - at)));
  }
  return out;
}

absl::Status DecodeSeedLayer(const LatticeContext& context, ByteSpan bytes,
                             const std::vector<MutablePlaneView>& planes) {
  ByteReader in(bytes);
  for (const bool opaque : {false, true}) {
    for (size_t p = 0; p < context.layer.planes.size(); ++p) {
      const PlaneSpec& spec = context.layer.planes[p];
      if ((spec.role == PlaneRole::kOpaque) != opaque) continue;
      LKV_RETURN_IF_ERROR(opaque ? ReadExactPlane(spec, context.tokens, in, planes[p])
                                 : DecodePlane(context, spec, in, planes[p]));
    }
  }
  if (in.remaining() != 0) return absl::DataLossError("frame: trailing bytes in a layer");
  return absl::OkStatus();
}

}  // namespace latticekv
