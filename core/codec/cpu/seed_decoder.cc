#include <zstd.h>

#include <algorithm>

#include "core/base/status_macros.h"
#include "core/codec/cpu/seed_transform.h"
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

void SumDifferences(const RawLists& raw, uint32_t dim, std::vector<int8_t>& points) {
  size_t at = 0;
  for (const std::vector<uint8_t>& head : raw) {
    const auto rows = static_cast<size_t>(std::count(head.begin(), head.end(), 0));
    for (size_t i = dim; i < rows * dim; ++i) {
      points[at + i] = static_cast<int8_t>(points[at + i] + points[at + i - dim]);
    }
    at += rows * dim;
  }
}

absl::Status DecodePlane(const LatticeContext& context, const PlaneSpec& spec, ByteReader& in,
                         const MutablePlaneView& view) {
  const int bits = in.Get<uint8_t>();
  const int flags = in.Get<uint8_t>();
  if (!in.ok() || bits < 1 || bits > kMaxSeedBits ||
      flags & ~(kSeedGroupScales | kSeedTokenDelta)) {
    return Damaged("bad plane header");
  }
  const uint32_t dim = spec.head_dim, group = flags & kSeedGroupScales ? 8 : dim;
  LKV_ASSIGN_OR_RETURN(const RawLists raw, ReadRawLists(spec.heads, context.tokens, in));
  const size_t vector_bytes = dim * DTypeBytes(spec.dtype);
  size_t rows = 0;
  for (uint32_t h = 0; h < spec.heads; ++h) {
    for (uint32_t t = 0; t < context.tokens; ++t) {
      rows += !raw[h][t];
      if (!raw[h][t]) continue;
      const ByteSpan vector = in.GetBytes(vector_bytes);
      if (!in.ok()) return Damaged("truncated raw vectors");
      std::copy(vector.begin(), vector.end(),
                view.data + t * view.token_stride + h * view.head_stride);
    }
  }
  std::vector<uint16_t> scales(rows * (dim / group));
  for (uint16_t& scale : scales) {
    scale = in.Get<uint16_t>();
    if (!in.ok() || scale >= 0x7C00) return Damaged("bad scale");
  }
  std::vector<int8_t> points(rows * dim);
  LKV_RETURN_IF_ERROR(ReadPoints(in, points));
  if (flags & kSeedTokenDelta) SumDifferences(raw, dim, points);
  const int bound = 1 << bits;
  for (int8_t p : points) {
    if (p < -bound || p > bound) return Damaged("a point is out of range");
  }
  SeedReconstructor reconstruct(spec, context.rope.Table(spec.rope), group);
  std::vector<float> row(dim);
  size_t at = 0;
  for (uint32_t h = 0; h < spec.heads; ++h) {
    for (uint32_t t = 0; t < context.tokens; ++t) {
      if (raw[h][t]) continue;
      reconstruct.Row(t, &points[at * dim], &scales[at * (dim / group)], row.data());
      StoreRow(spec.dtype, row.data(), dim,
               view.data + t * view.token_stride + h * view.head_stride);
      ++at;
    }
  }
  return absl::OkStatus();
}

}  // namespace

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
