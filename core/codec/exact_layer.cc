// Lossless coding of planes: the bytes of equal significance together, then zstd.
#include <zstd.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include <algorithm>
#include <array>
#include <memory>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "core/codec/layer_codec.h"
#include "core/codec/stage_timer.h"

namespace latticekv {
namespace {

// Higher levels find nothing more: the gain is in the skewed sign and exponent bytes, not in
// matches.
constexpr int kZstdLevel = 1;

struct FreeZstd {
  void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
  void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};

// What a thread keeps from plane to plane: making contexts costs as much as packing a small chunk's
// plane, and fresh memory is faulted in page by page.
struct Scratch {
  std::unique_ptr<ZSTD_CCtx, FreeZstd> packing{ZSTD_createCCtx()};
  std::unique_ptr<ZSTD_DCtx, FreeZstd> unpacking{ZSTD_createDCtx()};
  ByteVector bytes, packed;
};
constexpr size_t kMostKept = size_t{4} << 20;  // of each buffer

Scratch& ThreadScratch() {
  static thread_local Scratch scratch;
  for (ByteVector* buffer : {&scratch.bytes, &scratch.packed}) {
    if (buffer->capacity() > kMostKept) ByteVector().swap(*buffer);
  }
  return scratch;
}

// Of at least `size` bytes, whatever they are.
ByteVector& AtLeast(size_t size, ByteVector& buffer) {
  if (buffer.size() < size) buffer.resize(size);
  return buffer;
}

// Calls `visit` with every run of elements that lie side by side and their number, in order of
// token and head.
template <typename Byte, typename Visit>
void ForEachRun(const PlaneSpec& plane, uint32_t tokens, const BasicPlaneView<Byte>& view,
                Visit visit) {
  const size_t head_bytes = plane.head_dim * DTypeBytes(plane.dtype);
  const bool rows_whole = plane.heads == 1 || view.head_stride == head_bytes;
  if (rows_whole && view.token_stride == plane.token_bytes()) {
    visit(view.data, size_t{tokens} * plane.heads * plane.head_dim);
    return;
  }
  for (uint32_t t = 0; t < tokens; ++t) {
    for (uint32_t h = 0; h < plane.heads; ++h) {
      visit(view.data + t * view.token_stride + h * view.head_stride, plane.head_dim);
    }
  }
}

// A byte plane as one zstd frame, or as it is where that is no smaller; a u32 size before it.
void AppendBytePlane(ByteSpan bytes, Scratch& scratch, ByteWriter& out) {
  ByteVector& packed = AtLeast(ZSTD_compressBound(bytes.size()), scratch.packed);
  const size_t size = ZSTD_compressCCtx(scratch.packing.get(), packed.data(), packed.size(),
                                        bytes.data(), bytes.size(), kZstdLevel);
  const bool pays = !ZSTD_isError(size) && size < bytes.size();
  const ByteSpan body = pays ? ByteSpan(packed).first(size) : bytes;
  out.Put<uint32_t>(static_cast<uint32_t>(body.size()));
  out.PutBytes(body);
}

// The `size` bytes of a plane: where they lie in the frame, or unpacked into `unpacked`.
absl::StatusOr<ByteSpan> ReadBytePlane(ByteReader& in, size_t size, ByteVector& unpacked) {
  const size_t packed = in.Get<uint32_t>();
  const ByteSpan body = in.GetBytes(packed);
  if (!in.ok() || packed > size) return absl::DataLossError("frame: damaged exact plane");
  if (packed == size) return body;
  unpacked.resize(size);
  const size_t got = ZSTD_decompressDCtx(ThreadScratch().unpacking.get(), unpacked.data(), size,
                                         body.data(), body.size());
  if (ZSTD_isError(got) || got != size) return absl::DataLossError("frame: damaged zstd data");
  return unpacked;
}

constexpr size_t kMaxWidth = 4;
using BytePlanes = std::array<const std::byte*, kMaxWidth>;

// Joins `count` elements from their planes, beginning with element `from`.
template <size_t kWidth>
void JoinBytes(const BytePlanes& planes, size_t from, size_t count, std::byte* out) {
  size_t i = 0;
#if defined(__SSE2__)
  for (; kWidth == 2 && i + 16 <= count; i += 16) {
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(planes[0] + from + i));
    const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(planes[1] + from + i));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * i), _mm_unpacklo_epi8(low, high));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * i + 16), _mm_unpackhi_epi8(low, high));
  }
#endif
  for (; i < count; ++i) {
    for (size_t b = 0; b < kWidth; ++b) out[i * kWidth + b] = planes[b][from + i];
  }
}

// Byte `b` of each of `count` elements of `width` bytes.
void SplitByte(const std::byte* src, size_t width, size_t b, size_t count, std::byte* out) {
  size_t i = 0;
#if defined(__SSE2__)
  const __m128i low_bytes = _mm_set1_epi16(0xff);
  for (; width == 2 && i + 16 <= count; i += 16) {
    const auto load = [&](size_t at) {
      const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + at));
      return b == 0 ? _mm_and_si128(v, low_bytes) : _mm_srli_epi16(v, 8);
    };
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm_packus_epi16(load(2 * i), load(2 * i + 16)));
  }
#endif
  for (; i < count; ++i) out[i] = src[i * width + b];
}

}  // namespace

void AppendExactPlane(const PlaneSpec& plane, uint32_t tokens, const PlaneView& view,
                      ByteWriter& out) {
  const ScopedStage timer(CodecStage::kExact);
  const size_t width = DTypeBytes(plane.dtype);
  const size_t elements = plane.token_bytes() * tokens / width;
  // Apart, since mantissa bytes look random and would spoil the statistics of the others.
  Scratch& scratch = ThreadScratch();
  ByteVector& bytes = AtLeast(elements, scratch.bytes);
  for (size_t b = 0; b < width; ++b) {
    std::byte* at = bytes.data();
    ForEachRun(plane, tokens, view, [&](const std::byte* src, size_t count) {
      SplitByte(src, width, b, count, at);
      at += count;
    });
    AppendBytePlane(ByteSpan(bytes).first(elements), scratch, out);
  }
}

absl::Status ReadExactPlane(const PlaneSpec& plane, uint32_t tokens, ByteReader& in,
                            const MutablePlaneView& view) {
  const ScopedStage timer(CodecStage::kExact);
  const size_t width = DTypeBytes(plane.dtype);
  const size_t elements = plane.token_bytes() * tokens / width;
  std::array<ByteVector, kMaxWidth> unpacked;
  BytePlanes planes{};
  for (size_t b = 0; b < width; ++b) {
    LKV_ASSIGN_OR_RETURN(const ByteSpan bytes, ReadBytePlane(in, elements, unpacked[b]));
    planes[b] = bytes.data();
  }
  size_t at = 0;
  ForEachRun(plane, tokens, view, [&](std::byte* dst, size_t count) {
    (width == 2 ? JoinBytes<2> : JoinBytes<4>)(planes, at, count, dst);
    at += count;
  });
  return absl::OkStatus();
}

ByteVector EncodeExactLayer(const LayerSpec& layer, uint32_t tokens,
                            const std::vector<PlaneView>& planes) {
  ByteWriter out;
  size_t raw = 0;
  for (const PlaneSpec& plane : layer.planes) raw += plane.token_bytes() * tokens;
  out.Reserve(raw);
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
