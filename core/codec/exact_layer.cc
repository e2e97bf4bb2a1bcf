// Lossless coding of planes: the bytes of equal significance together, then zstd.
#include <zstd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "core/codec/layer_codec.h"
#include "core/codec/stage_timer.h"

namespace latticekv {
namespace {

constexpr int kZstdLevel = 3;
enum ExactMethod : uint8_t { kVerbatim = 0, kBytePlanes = 1 };

// Contiguous [tokens][heads][head_dim] bytes of a plane.
template <typename Visit>
void ForEachRow(const PlaneSpec& plane, uint32_t tokens, Visit visit) {
  for (uint32_t t = 0; t < tokens; ++t) {
    for (uint32_t h = 0; h < plane.heads; ++h) visit(t, h);
  }
}

}  // namespace

void AppendExactPlane(const PlaneSpec& plane, uint32_t tokens, const PlaneView& view,
                      ByteWriter& out) {
  const ScopedStage timer(CodecStage::kExact);
  const size_t width = DTypeBytes(plane.dtype), row = plane.head_dim * width;
  const size_t total = plane.token_bytes() * tokens, elements = total / width;
  // Byte b of element (token, head, d) goes to plane b at [head][d][token]: neighbours in time have
  // the same sign and exponent more often than neighbours in a vector.
  ByteVector split(total);
  ForEachRow(plane, tokens, [&](uint32_t t, uint32_t h) {
    const std::byte* src = view.data + t * view.token_stride + h * view.head_stride;
    for (uint32_t d = 0; d < plane.head_dim; ++d) {
      const size_t at = (size_t{h} * plane.head_dim + d) * tokens + t;
      for (size_t b = 0; b < width; ++b) split[b * elements + at] = src[d * width + b];
    }
  });
  ByteVector packed(ZSTD_compressBound(total));
  const size_t size = ZSTD_compress(packed.data(), packed.size(), split.data(), total, kZstdLevel);
  if (!ZSTD_isError(size) && size < total) {
    out.Put<uint32_t>(static_cast<uint32_t>(size + 1));
    out.Put<uint8_t>(kBytePlanes);
    out.PutBytes(ByteSpan(packed).first(size));
    return;
  }
  out.Put<uint32_t>(static_cast<uint32_t>(total + 1));
  out.Put<uint8_t>(kVerbatim);
  ForEachRow(plane, tokens, [&](uint32_t t, uint32_t h) {
    out.PutBytes({view.data + t * view.token_stride + h * view.head_stride, row});
  });
}

absl::Status ReadExactPlane(const PlaneSpec& plane, uint32_t tokens, ByteReader& in,
                            const MutablePlaneView& view) {
  const ScopedStage timer(CodecStage::kExact);
  const size_t width = DTypeBytes(plane.dtype), row = plane.head_dim * width;
  const size_t total = plane.token_bytes() * tokens, elements = total / width;
  const size_t size = in.Get<uint32_t>();
  const ByteSpan bytes = in.GetBytes(size);
  if (!in.ok() || size == 0) return absl::DataLossError("frame: truncated exact plane");
  const ByteSpan body = bytes.subspan(1);
  if (bytes[0] == std::byte{kVerbatim}) {
    if (body.size() != total) return absl::DataLossError("frame: exact plane has a wrong size");
    const std::byte* src = body.data();
    ForEachRow(plane, tokens, [&](uint32_t t, uint32_t h) {
      std::copy_n(src, row, view.data + t * view.token_stride + h * view.head_stride);
      src += row;
    });
    return absl::OkStatus();
  }
  if (bytes[0] != std::byte{kBytePlanes}) return absl::DataLossError("frame: unknown exact method");
  ByteVector split(total);
  const size_t got = ZSTD_decompress(split.data(), total, body.data(), body.size());
  if (ZSTD_isError(got) || got != total) return absl::DataLossError("frame: damaged zstd data");
  ForEachRow(plane, tokens, [&](uint32_t t, uint32_t h) {
    std::byte* dst = view.data + t * view.token_stride + h * view.head_stride;
    for (uint32_t d = 0; d < plane.head_dim; ++d) {
      const size_t at = (size_t{h} * plane.head_dim + d) * tokens + t;
      for (size_t b = 0; b < width; ++b) dst[d * width + b] = split[b * elements + at];
    }
  });
  return absl::OkStatus();
}

absl::StatusOr<ByteVector> EncodeExactLayer(const LayerSpec& layer, uint32_t tokens,
                                            const std::vector<PlaneView>& planes) {
  ByteWriter out;
  for (size_t p = 0; p < layer.planes.size(); ++p) {
    AppendExactPlane(layer.planes[p], tokens, planes[p], out);
  }
  return out.Take();
}

absl::Status DecodeExactLayer(const LayerSpec& layer, uint32_t tokens, ByteSpan bytes,
                              const std::vector<MutablePlaneView>& planes) {
  ByteReader in(bytes);
  for (size_t p = 0; p < layer.planes.size(); ++p) {
    LKV_RETURN_IF_ERROR(ReadExactPlane(layer.planes[p], tokens, in, planes[p]));
  }
  if (in.remaining() != 0) return absl::DataLossError("frame: trailing bytes in a layer");
  return absl::OkStatus();
}

}  // namespace latticekv
