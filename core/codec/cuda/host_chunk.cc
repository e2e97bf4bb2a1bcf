#include "core/codec/cuda/host_chunk.h"

#include <cstring>
#include <utility>
#include <vector>

#include "core/base/crc32c.h"
#include "core/codec/cuda/seed_tasks.h"
#include "core/codec/layer_codec.h"
#include "core/codec/seed_codec.h"

namespace latticekv {
namespace {

// Bytes of results.
struct Extent {
  size_t units = 0, scales = 0, points = 0, opaque = 0;

  void Add(const LayerSpec& layer, uint32_t rows, const SeedOptions& options) {
    for (const PlaneSpec& spec : layer.planes) {
      if (spec.role == PlaneRole::kOpaque) {
        opaque += spec.token_bytes() * rows;
        continue;
      }
      const size_t vectors = size_t{spec.heads} * rows;
      units += spec.heads * sizeof(cuda::SeedResult);
      scales += vectors * (spec.head_dim / SeedShapeOf(spec, options).Group(spec.head_dim)) *
                sizeof(uint16_t);
      points += vectors * spec.head_dim;
    }
  }
};

EncodedLayer EncodeLayer(const LayerSpec& layer, uint32_t rows, const SeedOptions& options,
                         CudaHostChunk::SeedResults at) {
  EncodedLayer out;
  ByteWriter bytes;
  for (const PlaneSpec& spec : layer.planes) {
    if (spec.role == PlaneRole::kOpaque) continue;
    const bool key = spec.role == PlaneRole::kKey;
    for (uint32_t h = 0; h < spec.heads; ++h) {
      (key ? out.errors.within.key_error_sum : out.errors.within.value_error_sum) +=
          LoadLe<cuda::SeedResult>(at.units).error_sum;
      (key ? out.errors.within.key_vectors : out.errors.within.value_vectors) += rows;
      at.units += sizeof(cuda::SeedResult);
    }
    const SeedShape shape = SeedShapeOf(spec, options);
    const size_t vectors = size_t{spec.heads} * rows;
    SeedPlane plane{shape,
                    std::vector<std::vector<uint8_t>>(spec.heads, std::vector<uint8_t>(rows)),
                    std::vector<uint16_t>(vectors * (spec.head_dim / shape.Group(spec.head_dim))),
                    std::vector<int8_t>(vectors * spec.head_dim)};
    const size_t scale_bytes = plane.scales.size() * sizeof(uint16_t);
    std::memcpy(plane.scales.data(), at.scales, scale_bytes);
    std::memcpy(plane.points.data(), at.points, plane.points.size());
    at.scales += scale_bytes;
    at.points += plane.points.size();
    AppendSeedPlane(spec, plane, {}, bytes);
  }
  for (const PlaneSpec& spec : layer.planes) {
    if (spec.role != PlaneRole::kOpaque) continue;
    AppendExactPlane(spec, rows, ContiguousPlane(spec, at.opaque), bytes);
    at.opaque += spec.token_bytes() * rows;
  }
  out.bytes = bytes.Take();
  return out;
}

}  // namespace

CudaHostChunk CudaHostChunk::Whole(const Layout& layout, uint32_t tokens,
                                   const EncodeOptions& options, ByteVector raw) {
  CudaHostChunk out(layout, options);
  out.header_.tokens = static_cast<uint16_t>(tokens);
  out.whole_ = true;
  out.bytes_ = std::move(raw);
  return out;
}

std::optional<CudaHostChunk> CudaHostChunk::Seed(const Layout& layout, const FrameHeader& header,
                                                 const EncodeOptions& options,
                                                 const SeedResults& results) {
  Extent all;
  for (const LayerSpec& layer : layout.layers) all.Add(layer, StoredRows(header), options.seed);
  for (size_t at = 0; at < all.units; at += sizeof(cuda::SeedResult)) {
    if (LoadLe<cuda::SeedResult>(results.units + at).raw_rows > 0) return std::nullopt;
  }
  CudaHostChunk out(layout, options);
  out.header_ = header;
  out.bytes_.reserve(all.units + all.scales + all.points + all.opaque);
  for (const auto& [from, bytes] :
       {std::pair(results.units, all.units), std::pair(results.scales, all.scales),
        std::pair(results.points, all.points), std::pair(results.opaque, all.opaque)}) {
    out.bytes_.insert(out.bytes_.end(), from, from + bytes);
  }
  return out;
}

absl::StatusOr<ByteVector> CudaHostChunk::Encode(const LayerRunner* runner) const {
  if (whole_) {
    const uint32_t tokens = header_.tokens;
    EncodeOptions options = options_;
    options.runner = runner;
    return EncodeFrame(*layout_, tokens, RawChunkViews(*layout_, tokens, bytes_), options);
  }
  const uint32_t rows = StoredRows(header_);
  std::vector<Extent> before(1);  // [layer], and all
  for (const LayerSpec& layer : layout_->layers) {
    before.emplace_back(before.back()).Add(layer, rows, options_.seed);
  }
  const Extent& all = before.back();
  const std::byte* units = bytes_.data();
  const std::byte *scales = units + all.units, *points = scales + all.scales;
  const std::byte* opaque = points + all.points;
  std::vector<EncodedLayer> layers(layout_->layers.size());
  RunLayers(runner, layers.size(), [&](size_t l) {
    const Extent& skip = before[l];
    layers[l] = EncodeLayer(
        layout_->layers[l], rows, options_.seed,
        {units + skip.units, scales + skip.scales, points + skip.points, opaque + skip.opaque});
  });
  FrameHeader header = header_;
  for (const EncodedLayer& layer : layers) {
    AppendLayerEntry(layer.bytes.size(), Crc32c(layer.bytes), layer.errors, header);
  }
  ByteVector frame = SerializeFrameHeader(header);
  for (const EncodedLayer& layer : layers) {
    frame.insert(frame.end(), layer.bytes.begin(), layer.bytes.end());
  }
  return frame;
}

}  // namespace latticekv
