// One layer as tiles: the lattice stages on a CPU.
#include <algorithm>

#include "core/base/status_macros.h"
#include "core/codec/cpu/kernels.h"
#include "core/codec/cpu/prefetch.h"
#include "core/codec/cpu/quantizer.h"
#include "core/codec/cpu/rans.h"
#include "core/codec/cpu/reconstruct.h"
#include "core/codec/cpu/tile_coder.h"
#include "core/codec/cpu/unit_encoder.h"
#include "core/codec/layer_codec.h"
#include "core/codec/stage_timer.h"

namespace latticekv {
namespace {

const std::byte* VectorAt(const PlaneView& view, uint32_t token, uint32_t head) {
  return view.data + token * view.token_stride + head * view.head_stride;
}

size_t VectorBytes(const UnitRef& unit) {
  return unit.spec->head_dim * DTypeBytes(unit.spec->dtype);
}

ByteVector AssembleTile(const CpuKernels& kernels, std::span<const CodedUnit> units,
                        const std::vector<PlaneView>& planes, RansEncoder& coder) {
  ByteWriter out;
  for (const CodedUnit& u : units) AppendUnitHeader(u.plan.header, out);
  for (const CodedUnit& u : units) {
    for (uint32_t t = 0; t < u.plan.raw.size(); ++t) {
      if (!u.plan.raw[t]) continue;
      const UnitRef& unit = u.plan.unit;
      out.PutBytes({VectorAt(planes[unit.plane], t, unit.head), VectorBytes(unit)});
    }
  }
  if (TileHasSymbols(units)) {
    const ScopedStage timer(CodecStage::kEntropyCode);
    EncodeTileSymbols(kernels, units, coder);
    coder.Finish(out);
  }
  return out.Take();
}

// What encoding and decoding a tile need, kept by each thread from tile to tile: fresh memory would
// be faulted in, page by page, under a lock that all threads share. A few MiB at the format's
// limits; a frame with larger tiles leaves nothing behind.
struct EncoderMemory {
  UnitData data;
  PointBuffers points;
  RansEncoder coder;
};
struct DecoderMemory {
  ByteVector words;
  PointBuffers points;
  std::vector<float> row;
};
template <typename Memory>
Memory& ThreadMemory() {
  static thread_local Memory memory;
  return memory;
}

// At once to where they fit.
void AppendAll(const std::vector<ByteVector>& parts, ByteVector& out) {
  size_t size = out.size();
  for (const ByteVector& part : parts) size += part.size();
  out.reserve(size);
  for (const ByteVector& part : parts) out.insert(out.end(), part.begin(), part.end());
}

// Those of keys are the layer's; those of values are sent with their steps.
void SetOffsets(const LatticeContext& context, UnitPlan& plan) {
  if (!context.mass) return;
  const bool key = plan.unit.spec->role == PlaneRole::kKey;
  for (uint16_t t : plan.coded) plan.offset.push_back(key ? context.key_offset[t] : 0);
}

// Reads headers and raw vectors of a tile; what is left of `in` are the coder's bytes.
absl::StatusOr<std::vector<CodedUnit>> ReadTileHead(const LatticeContext& context,
                                                    std::span<const UnitRef> refs,
                                                    const std::vector<MutablePlaneView>& planes,
                                                    std::vector<const HeadProfile*>& profiles,
                                                    ByteReader& in) {
  std::vector<CodedUnit> units(refs.size());
  for (size_t i = 0; i < refs.size(); ++i) {
    const UnitRef& ref = refs[i];
    profiles.push_back(context.head_profile(ref.plane, ref.head));
    units[i].plan.unit = ref;
    LKV_ASSIGN_OR_RETURN(units[i].plan.header,
                         ReadUnitHeader(context.tokens, ref, profiles.back(), in));
    ResolveRows(context.tokens, units[i].plan);
    SetOffsets(context, units[i].plan);
  }
  for (const CodedUnit& u : units) {
    const UnitRef& ref = u.plan.unit;
    const MutablePlaneView& view = planes[ref.plane];
    for (uint32_t t = 0; t < context.tokens; ++t) {
      std::byte* dst = view.data + t * view.token_stride + ref.head * view.head_stride;
      if (u.plan.header.all_zero) std::fill_n(dst, VectorBytes(ref), std::byte{0});
      if (!u.plan.raw[t]) continue;
      const ByteSpan vector = in.GetBytes(VectorBytes(ref));
      if (!in.ok()) return absl::DataLossError("frame: truncated raw vectors");
      std::copy(vector.begin(), vector.end(), dst);
    }
  }
  return units;
}

absl::Status DecodeTile(const LatticeContext& context, std::span<const UnitRef> refs,
                        ByteSpan bytes, const std::vector<MutablePlaneView>& planes,
                        DecoderMemory& memory) {
  ByteReader in(bytes);
  std::vector<const HeadProfile*> profiles;
  LKV_ASSIGN_OR_RETURN(std::vector<CodedUnit> units,
                       ReadTileHead(context, refs, planes, profiles, in));
  const ByteSpan coded = in.GetBytes(in.remaining());
  const bool has_symbols = TileHasSymbols(units);
  LKV_RETURN_IF_ERROR(CheckCodedSize(has_symbols, coded.size()));
  if (!has_symbols) return absl::OkStatus();
  {
    const ScopedStage timer(CodecStage::kEntropyDecode);
    // A copy, so that kernels may read beyond the last word.
    ByteVector& words = memory.words;
    if (words.size() > PointBuffers::kMostKeptBytes) words = {};
    if (words.size() < coded.size() + 2 * kWordSlack) words.resize(coded.size() + 2 * kWordSlack);
    std::copy(coded.begin(), coded.end(), words.begin());
    for (CodedUnit& u : units) {
      u.q2 = memory.points.Take(u.plan.coded.size() * u.plan.unit.spec->head_dim);
    }
    RansDecoder coder(ByteSpan(words).first(coded.size()));
    if (!DecodeTileSymbols(context.kernels, units, profiles, context.value_unit_16, coder)) {
      return absl::DataLossError("frame: damaged symbols in a tile");
    }
  }
  const ScopedStage timer(CodecStage::kReconstruct);
  std::vector<float>& row = memory.row;
  for (CodedUnit& u : units) {
    const PlaneSpec& spec = *u.plan.unit.spec;
    const MutablePlaneView& view = planes[u.plan.unit.plane];
    UnitReconstructor reconstruct(context.kernels, u.plan, context.rope.Table(spec.rope));
    row.resize(spec.head_dim);
    const auto at = [&](size_t i) {
      return view.data + u.plan.coded[i] * view.token_stride + u.plan.unit.head * view.head_stride;
    };
    for (size_t i = 0; i < u.plan.coded.size(); ++i) {
      if (i + kRowsAhead < u.plan.coded.size()) {
        PrefetchRow<1>(at(i + kRowsAhead), VectorBytes(u.plan.unit));
      }
      reconstruct.Row(i, &u.q2[i * spec.head_dim], row.data());
      context.kernels.store_row(spec.dtype, row.data(), spec.head_dim, at(i));
    }
    memory.points.Give(std::move(u.q2));
  }
  return absl::OkStatus();
}

}  // namespace

EncodedLayer EncodeLatticeLayer(const LatticeContext& layer_context, const LatticeChoices& choices,
                                const std::vector<PlaneView>& planes) {
  EncodedLayer out;
  LatticeContext context = layer_context;
  const std::vector<int16_t> key_offset = KeyOffsets(choices);
  context.key_offset = key_offset;
  const std::vector<UnitRef> refs = LayerUnits(context.layer);
  const std::vector<uint32_t> tiles = SplitIntoTiles(refs, context.tokens);
  ByteWriter bytes;
  std::vector<ByteVector> bodies;
  if (context.mass) AppendTokenOffsets(key_offset, bytes);
  bytes.Put(static_cast<uint16_t>(tiles.size()));
  EncoderMemory& memory = ThreadMemory<EncoderMemory>();
  std::span<const UnitRef> rest(refs);
  for (uint32_t count : tiles) {
    std::vector<CodedUnit> units;
    for (const UnitRef& ref : rest.first(count)) {
      LoadUnit(context, choices, ref, planes[ref.plane], memory.data);
      units.push_back(EncodeUnit(context, choices, ref, memory.data, memory.points, out.errors));
      out.uses_profile |= UsesProfile(units.back().plan.header);
    }
    bodies.push_back(AssembleTile(context.kernels, units, planes, memory.coder));
    for (CodedUnit& unit : units) memory.points.Give(std::move(unit.q2));
    rest = rest.subspan(count);
    bytes.Put(static_cast<uint16_t>(count));
    bytes.Put(static_cast<uint32_t>(bodies.back().size()));
  }
  ByteWriter opaque;
  for (size_t p = 0; p < context.layer.planes.size(); ++p) {
    if (context.layer.planes[p].role != PlaneRole::kOpaque) continue;
    AppendExactPlane(context.layer.planes[p], context.tokens, planes[p], opaque);
  }
  bodies.push_back(opaque.Take());
  out.bytes = bytes.Take();
  AppendAll(bodies, out.bytes);
  return out;
}

absl::Status DecodeLatticeLayer(const LatticeContext& layer_context, ByteSpan bytes,
                                const std::vector<MutablePlaneView>& planes) {
  LatticeContext context = layer_context;
  const std::vector<UnitRef> refs = LayerUnits(context.layer);
  ByteReader in(bytes);
  std::vector<int16_t> key_offset;
  if (context.mass) {
    LKV_ASSIGN_OR_RETURN(key_offset, ReadTokenOffsets(context.tokens, in));
    context.key_offset = key_offset;
  }
  LKV_ASSIGN_OR_RETURN(const std::vector<TileSpan> tiles, ReadTiles(refs, in));
  DecoderMemory& memory = ThreadMemory<DecoderMemory>();
  for (const TileSpan& tile : tiles) {
    LKV_RETURN_IF_ERROR(DecodeTile(context, tile.units, tile.bytes, planes, memory));
  }
  for (size_t p = 0; p < context.layer.planes.size(); ++p) {
    const PlaneSpec& plane = context.layer.planes[p];
    if (plane.role != PlaneRole::kOpaque) continue;
    LKV_RETURN_IF_ERROR(ReadExactPlane(plane, context.tokens, in, planes[p]));
  }
  if (in.remaining() != 0) return absl::DataLossError("frame: trailing bytes in a layer");
  return absl::OkStatus();
}

}  // namespace latticekv
