// Lossless coding of planes: the bytes of equal significance together, then zstd.
#include <zstd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "core/codec/layer_codec.h"
#include "core/codec/stage_timer.h"

namespace latticekv {
namespace {

// Higher levels find nothing more: the gain is in the skewed sign and exponent bytes, not in
// matches.
constexpr int kZstdLevel = 1;

// Calls `visit` with the bytes of every vector, in order of token and head.
template <typename Byte, typename Visit>
void ForEachVector(const PlaneSpec& plane, uint32_t tokens, const BasicPlaneView<Byte>& view,
                   Visit visit) {
  for (uint32_t t = 0; t < tokens; ++t) {
    for (uint32_t h = 0; h < plane.heads; ++h) {
      visit(view.data + t * view.token_stride + h * view.head_stride);
    }
  }
}

// A byte plane as one zstd frame, or as it is where that is no smaller; a u32 size before it.
void AppendBytePlane(ByteSpan bytes, ByteVector& packed, ByteWriter& out) {
  packed.resize(ZSTD_compressBound(bytes.size()));
  const size_t size =
      ZSTD_compress(packed.data(), packed.size(), bytes.data(), bytes.size(), kZstdLevel);
  const bool pays = !ZSTD_isError(size) && size < bytes.size();
  const ByteSpan body = pays ? ByteSpan(packed).first(size) : bytes;
  out.Put<uint32_t>(static_cast<uint32_t>(body.size()));
  out.PutBytes(body);
}

absl::Status ReadBytePlane(ByteReader& in, MutableByteSpan bytes) {
  const size_t size = in.Get<uint32_t>();
  const ByteSpan body = in.GetBytes(size);
  if (!in.ok() || size > bytes.size()) return absl::DataLossError("frame: damaged exact plane");
  if (size == bytes.size()) {
    std::copy(body.begin(), body.end(), bytes.begin());
    return absl::OkStatus();
  }
  const size_t got = ZSTD_decompress(bytes.data(), bytes.size(), body.data(), body.size());
  if (ZSTD_isError(got) || got != bytes.size()) {
    return absl::DataLossError("frame: damaged zstd data");
  }
  return absl::OkStatus();
}

}  // namespace

void AppendExactPlane(const PlaneSpec& plane, uint32_t tokens, const PlaneView& view,
                      ByteWriter& out) {
  const ScopedStage timer(CodecStage::kExact);
  const size_t width = DTypeBytes(plane.dtype);
  const size_t elements = plane.token_bytes() * tokens / width;
  // Apart, since mantissa bytes look random and would spoil the statistics of the others.
  ByteVector bytes(elements), packed;
  for (size_t b = 0; b < width; ++b) {
    std::byte* at = bytes.data();
    ForEachVector(plane, tokens, view, [&](const std::byte* src) {
      for (uint32_t d = 0; d < plane.head_dim; ++d) *at++ = src[d * width + b];
    });
    AppendBytePlane(bytes, packed, out);
  }
}

absl::Status ReadExactPlane(const PlaneSpec& plane, uint32_t tokens, ByteReader& in,
                            const MutablePlaneView& view) {
  const ScopedStage timer(CodecStage::kExact);
  const size_t width = DTypeBytes(plane.dtype);
  ByteVector bytes(plane.token_bytes() * tokens / width);
  for (size_t b = 0; b < width; ++b) {
    LKV_RETURN_IF_ERROR(ReadBytePlane(in, bytes));
    const std::byte* at = bytes.data();
    ForEachVector(plane, tokens, view, [&](std::byte* dst) {
      for (uint32_t d = 0; d < plane.head_dim; ++d) dst[d * width + b] = *at++;
    });
  }
  return absl::OkStatus();
}

ByteVector EncodeExactLayer(const LayerSpec& layer, uint32_t tokens,
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
