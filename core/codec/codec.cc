#include "core/codec/codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "core/base/crc32c.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/codec/attention_mass.h"
#include "core/codec/cpu/kernels.h"
#include "core/codec/fixed_point.h"
#include "core/codec/frame_format.h"
#include "core/codec/layer_codec.h"
#include "core/codec/seed_codec.h"
#include "core/codec/shared_planes.h"
#include "core/codec/token_eviction.h"

namespace latticekv {
namespace {

uint64_t IntegerSqrt(uint64_t v) {
  uint64_t r = static_cast<uint64_t>(std::sqrt(static_cast<double>(v)));
  while (r > 0 && r * r > v) --r;
  while ((r + 1) * (r + 1) <= v) ++r;
  return r;
}

// rms of `vectors` squared errors in units of 2^-15, saturated.
uint16_t RmsQ15(uint64_t sum, uint32_t vectors) {
  if (vectors == 0) return 0;
  const uint64_t mean = sum / vectors;  // units of 2^-28
  return static_cast<uint16_t>(std::min<uint64_t>(IntegerSqrt(mean << 2), 65535));
}

double Rms(uint64_t sum, uint32_t vectors) {
  if (vectors == 0) return 0;
  return std::sqrt(static_cast<double>(sum) / vectors / std::exp2(kErrorFractionBits));
}

absl::Status CheckChunk(const Layout& layout, uint32_t tokens,
                        const std::vector<std::vector<PlaneView>>& planes,
                        const EncodeOptions& options) {
  if (tokens == 0 || tokens > limits::kMaxChunkTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("a chunk has 1 to ", limits::kMaxChunkTokens, " tokens, not ", tokens));
  }
  if (planes.size() != layout.layers.size()) {
    return absl::InvalidArgumentError(absl::StrCat("the chunk has ", planes.size(),
                                                   " layers, the layout ", layout.layers.size()));
  }
  for (size_t l = 0; l < planes.size(); ++l) {
    if (planes[l].size() != layout.layers[l].planes.size()) {
      return absl::InvalidArgumentError(absl::StrCat("layer ", l, " has ", planes[l].size(),
                                                     " planes, the layout ",
                                                     layout.layers[l].planes.size()));
    }
  }
  if (options.start_position > limits::kMaxPosition - tokens) {
    return absl::InvalidArgumentError("start_position is too large");
  }
  for (uint32_t t : options.exact_tokens) {
    if (t >= tokens) {
      return absl::InvalidArgumentError(
          absl::StrCat("exact token ", t, " is outside of the chunk of ", tokens));
    }
  }
  return CheckMass(options.mass, planes.size(), tokens);
}

absl::Status CheckProfile(const FrameHeader& header, const EncodeOptions& options) {
  if (options.profile == nullptr) {
    if (options.stats != StatsMode::kProfile) return absl::OkStatus();
    return absl::FailedPreconditionError(
        "statistics of the profile were asked for; give a profile");
  }
  if (options.profile->layout_fingerprint != header.layout_fingerprint) {
    return absl::FailedPreconditionError("the profile was made for another layout");
  }
  if (options.stats != StatsMode::kProfile) return absl::OkStatus();
  for (const auto& layer : options.profile->layers) {
    for (const PlaneProfile& plane : layer) {
      for (const HeadProfile& head : plane.heads) {
        if (!head.has_statistics()) {
          return absl::FailedPreconditionError(
              "the profile has no means and sigmas; learn one or use own statistics");
        }
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSeed(const SeedOptions& seed) {
  for (int bits : {seed.key_bits, seed.value_bits}) {
    if (bits >= 1 && bits <= kMaxSeedBits) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("seed bits must be 1 to ", kMaxSeedBits, ", not ", bits));
  }
  return absl::OkStatus();
}

bool HasQueryEnergy(const ModelProfile* profile, const Layout& layout) {
  if (profile == nullptr) return false;
  for (size_t l = 0; l < profile->layers.size(); ++l) {
    for (size_t p = 0; p < profile->layers[l].size(); ++p) {
      if (layout.layers[l].planes[p].role != PlaneRole::kKey) continue;
      for (const HeadProfile& head : profile->layers[l][p].heads) {
        if (head.query_energy.empty()) return false;
      }
    }
  }
  return true;
}

// What all chunks with the same layout, preset, statistics and profile have in their headers.
absl::StatusOr<FrameHeader> StartCommonHeader(const Layout& layout, const EncodeOptions& options) {
  const Preset& preset = GetPreset(options.preset);
  FrameHeader header;
  header.preset = static_cast<uint8_t>(preset.id);
  header.layout_fingerprint = LayoutFingerprint(layout);
  if (preset.id == PresetId::kExact) {
    header.stages = kStageExact;
    return header;
  }
  LKV_RETURN_IF_ERROR(CheckProfile(header, options));
  if (preset.id == PresetId::kSeed) {
    LKV_RETURN_IF_ERROR(CheckSeed(options.seed));
    header.stages = kStageSeed;
  } else {
    header.stages = kStageLattice;
    header.value_unit_16 = static_cast<int16_t>(Sixteenths(preset.value_error / kE8Rms));
  }
  if (HasQueryEnergy(options.profile, layout)) header.flags |= kFlagProfiled;
  if (!ChunkRope(layout, options.start_position, 0).empty()) header.stages |= kStageRope;
  return header;
}

// Makes `planes`, which lie one behind the other, views of a copy.
void CopyPlanes(const LayerSpec& layer, uint32_t rows, ByteVector& copy,
                std::vector<PlaneView>& planes) {
  const size_t bytes = layer.token_bytes() * rows;
  if (copy.size() < bytes) copy.resize(bytes);
  std::memcpy(copy.data(), planes.front().data, bytes);
  const std::byte* at = copy.data();
  for (size_t p = 0; p < planes.size(); ++p) {
    planes[p].data = at;
    at += layer.planes[p].token_bytes() * rows;
  }
}

// Where the bytes of one layer may change while it is encoded, it is encoded from a copy in memory
// of the thread's own, which stays in its cache. Kept by each thread: fresh memory would be faulted
// in, page by page.
constexpr size_t kMostCopyKept = size_t{16} << 20;
ByteVector& ThreadCopy() {
  static thread_local ByteVector copy;
  if (copy.capacity() > kMostCopyKept) ByteVector().swap(copy);
  return copy;
}

// Encodes the layers of one frame, any of them at any time. `planes` has the rows of the tokens
// that are kept, `tokens` counts all. `read_once`: every byte is read once; the planes of a layer
// are contiguous then. No unit's errors are more than `bounds`. Refers to all that it is made with;
// Encode() is thread-safe.
class LayerEncoder {
 public:
  LayerEncoder(const Layout& layout, uint32_t tokens,
               const std::vector<std::vector<PlaneView>>& planes, const EncodeOptions& options,
               const CpuKernels& kernels, const FrameHeader& header, bool read_once,
               const ErrorBounds& bounds)
      : layout_(layout),
        tokens_(tokens),
        planes_(planes),
        options_(options),
        kernels_(kernels),
        header_(header),
        read_once_(read_once),
        exact_(options.preset == PresetId::kExact),
        rows_(StoredRows(header)),
        rope_(layout, options.start_position, exact_ ? 0 : tokens, header.keep) {
    choices_ = {GetPreset(options.preset).logit_noise, options.stats,
                KeptOnly(RawTokens(tokens, options), header.keep)};
    choices_.bounds = bounds;
  }

  EncodedLayer Encode(size_t l) const {
    if (exact_) return {EncodeExactLayer(layout_.layers[l], rows_, planes_[l]), {}, false};
    std::vector<PlaneView> input = planes_[l];
    if (read_once_) CopyPlanes(layout_.layers[l], rows_, ThreadCopy(), input);
    const bool mass = header_.stages & kStageMass;
    const LatticeContext context{layout_.layers[l],
                                 rows_,
                                 rope_,
                                 options_.profile ? &options_.profile->layers[l] : nullptr,
                                 header_.value_unit_16,
                                 kernels_,
                                 mass};
    LatticeChoices choices = choices_;
    if (mass) {
      choices.mass_16 = KeptOnly(MassPerQuery16(options_.mass, l, tokens_), header_.keep);
      choices.mass_level_16 = MassLevel16(options_.mass, l);
    }
    return options_.preset == PresetId::kSeed
               ? EncodeSeedLayer(context, choices, options_.seed, input)
               : EncodeLatticeLayer(context, choices, input);
  }

 private:
  const Layout& layout_;
  const uint32_t tokens_;
  const std::vector<std::vector<PlaneView>>& planes_;
  const EncodeOptions& options_;
  const CpuKernels& kernels_;
  const FrameHeader& header_;
  const bool read_once_, exact_;
  const uint32_t rows_;
  const ChunkRope rope_;
  LatticeChoices choices_;
};

struct CodedLayer {
  EncodedLayer layer;
  uint32_t crc32c = 0;
};

std::vector<CodedLayer> EncodeLayers(const LayerEncoder& encoder, size_t layers,
                                     const LayerRunner* runner) {
  std::vector<CodedLayer> out(layers);
  RunLayers(runner, layers, [&](size_t l) {
    out[l].layer = encoder.Encode(l);
    out[l].crc32c = Crc32c(out[l].layer.bytes);
  });
  return out;
}

// Fills the header's table and errors.
void AppendLayers(const std::vector<CodedLayer>& layers, const ModelProfile* profile,
                  FrameHeader& header) {
  for (const CodedLayer& coded : layers) {
    if (coded.layer.uses_profile) UseProfile(*profile, header);
    AppendLayerEntry(coded.layer.bytes.size(), coded.crc32c, coded.layer.errors, header);
  }
}

FrameInfo MakeInfo(const FrameHeader& header, uint64_t frame_bytes) {
  FrameInfo info;
  info.preset = static_cast<PresetId>(header.preset);
  info.tokens = header.tokens;
  info.evicted_tokens = static_cast<uint32_t>(header.tokens - StoredRows(header));
  info.keep = header.keep;
  info.layers = static_cast<uint32_t>(header.layers.size());
  info.start_position = header.start_position;
  info.layout_fingerprint = header.layout_fingerprint;
  info.profile_hash = header.profile_hash;
  info.needs_profile = header.stages & kStageProfile;
  info.quality.exact = header.stages & kStageExact;
  info.quality.profiled = header.flags & kFlagProfiled;
  const ErrorSums &errors = header.errors, &coarse = header.coarse;
  info.quality.logit_noise = Rms(errors.key_error_sum, errors.key_vectors);
  info.quality.value_error = Rms(errors.value_error_sum, errors.value_vectors);
  info.quality.mass_scaled = header.stages & kStageMass;
  info.quality.coarse_logit_noise = Rms(coarse.key_error_sum, coarse.key_vectors);
  info.quality.coarse_value_error = Rms(coarse.value_error_sum, coarse.value_vectors);
  const uint64_t rest = uint64_t{coarse.key_vectors} + coarse.value_vectors;
  const uint64_t all = rest + errors.key_vectors + errors.value_vectors;
  info.quality.coarse_share = all > 0 ? static_cast<double>(rest) / static_cast<double>(all) : 0;
  info.frame_bytes = frame_bytes;
  for (const LayerEntry& layer : header.layers) info.layer_bytes.push_back(layer.size_bytes);
  return info;
}

}  // namespace

ChunkRope::ChunkRope(const Layout& layout, uint64_t start_position, uint32_t tokens,
                     const std::vector<uint8_t>& keep) {
  for (const LayerSpec& layer : layout.layers) {
    for (const PlaneSpec& plane : layer.planes) {
      if (plane.rope.style == RopeStyle::kNone || Table(plane.rope) != nullptr) continue;
      std::vector<SinCos> table = RopeTable(plane.rope, start_position, tokens);
      const size_t pairs = plane.rope.rotary_dims / 2;
      size_t rows = 0;
      for (size_t t = 0; t < keep.size() && tokens > 0; ++t) {
        if (!keep[t]) continue;
        std::copy_n(table.begin() + static_cast<std::ptrdiff_t>(t * pairs), pairs,
                    table.begin() + static_cast<std::ptrdiff_t>(rows++ * pairs));
      }
      tables_.emplace_back(plane.rope, std::move(table));
    }
  }
}

const SinCos* ChunkRope::Table(const RopeSpec& rope) const {
  for (const auto& [spec, table] : tables_) {
    if (spec == rope) return table.data();
  }
  return nullptr;
}

std::vector<std::vector<PlaneView>> RawChunkViews(const Layout& layout, uint32_t tokens,
                                                  ByteSpan raw) {
  std::vector<std::vector<PlaneView>> out;
  const std::byte* at = raw.data();
  for (const LayerSpec& layer : layout.layers) {
    std::vector<PlaneView>& planes = out.emplace_back();
    for (const PlaneSpec& plane : layer.planes) {
      planes.push_back(ContiguousPlane(plane, at));
      at += plane.token_bytes() * tokens;
    }
  }
  return out;
}

absl::StatusOr<FrameHeader> StartFrameHeader(const Layout& layout, uint32_t tokens,
                                             const std::vector<std::vector<PlaneView>>& planes,
                                             const EncodeOptions& options,
                                             const FrameHeader* alike) {
  LKV_RETURN_IF_ERROR(CheckChunk(layout, tokens, planes, options));
  FrameHeader header;
  if (alike != nullptr) {
    header = *alike;
    header.stages &= ~(kStageMass | kStageEvicted);
    header.keep.clear();
  } else {
    LKV_ASSIGN_OR_RETURN(header, StartCommonHeader(layout, options));
  }
  header.start_position = options.start_position;
  header.tokens = static_cast<uint16_t>(tokens);
  if (options.mass.data != nullptr && header.stages & kStageLattice) header.stages |= kStageMass;
  LKV_RETURN_IF_ERROR(CheckKeep(layout, tokens, options.keep));
  for (uint8_t k : options.keep) {
    header.keep.push_back(k != 0);
    if (k == 0) header.stages |= kStageEvicted;
  }
  if (!(header.stages & kStageEvicted)) header.keep.clear();
  return header;
}

std::vector<uint8_t> RawTokens(uint32_t tokens, const EncodeOptions& options) {
  std::vector<uint8_t> out(tokens, 0);
  // The seed stages have no sinks: they are kept as published.
  const uint64_t sinks = options.preset == PresetId::kSeed ? 0 : kSinkTokens;
  for (uint32_t t = 0; t < tokens; ++t) out[t] = options.start_position + t < sinks;
  for (uint32_t t : options.exact_tokens) out[t] = 1;
  return out;
}

void UseProfile(const ModelProfile& profile, FrameHeader& header) {
  header.stages |= kStageProfile;
  header.profile_hash = profile.decoding_hash;
}

void AppendLayerEntry(size_t size_bytes, uint32_t crc32c, const LayerErrors& e,
                      FrameHeader& header) {
  header.errors.Add(e.within);
  header.coarse.Add(e.coarse);
  header.layers.push_back({static_cast<uint32_t>(size_bytes), crc32c,
                           RmsQ15(e.within.key_error_sum, e.within.key_vectors),
                           RmsQ15(e.within.value_error_sum, e.within.value_vectors)});
}

void RunLayers(const LayerRunner* runner, size_t layers, const std::function<void(size_t)>& work) {
  if (runner != nullptr) {
    runner->Run(layers, work);
  } else {
    for (size_t l = 0; l < layers; ++l) work(l);
  }
}

namespace {

absl::StatusOr<ByteVector> Encode(const Layout& layout, uint32_t tokens,
                                  const std::vector<std::vector<PlaneView>>& planes,
                                  const EncodeOptions& options, bool read_once) {
  LKV_ASSIGN_OR_RETURN(const FrameHeader start, StartFrameHeader(layout, tokens, planes, options));
  LKV_ASSIGN_OR_RETURN(const CpuKernels* kernels, KernelsFor(options.backend));
  ByteVector kept;
  if (!start.keep.empty()) read_once = false;  // gathering is copying
  const std::vector<std::vector<PlaneView>> rows =
      start.keep.empty() ? planes : GatherKept(layout, planes, start.keep, kept);
  FrameHeader header;
  std::vector<CodedLayer> layers;
  for (const ErrorBounds& bounds : {ErrorBounds(), ContractOf(start)}) {
    const LayerEncoder encoder(layout, tokens, rows, options, *kernels, start, read_once, bounds);
    layers = EncodeLayers(encoder, layout.layers.size(), options.runner);
    header = start;
    AppendLayers(layers, options.profile, header);
    if (header.errors.AreWithin(ContractOf(header))) break;
  }
  ByteVector frame = SerializeFrameHeader(header);
  size_t bytes = frame.size();
  for (const CodedLayer& coded : layers) bytes += coded.layer.bytes.size();
  frame.reserve(bytes);
  for (const CodedLayer& coded : layers) {
    frame.insert(frame.end(), coded.layer.bytes.begin(), coded.layer.bytes.end());
  }
  return frame;
}

}  // namespace

absl::StatusOr<ByteVector> EncodeFrame(const Layout& layout, uint32_t tokens,
                                       const std::vector<std::vector<PlaneView>>& planes,
                                       const EncodeOptions& options) {
  return Encode(layout, tokens, planes, options, false);
}

absl::StatusOr<ByteVector> EncodeSharedFrame(const Layout& layout, uint32_t tokens, ByteSpan raw,
                                             const EncodeOptions& options) {
  return Encode(layout, tokens, RawChunkViews(layout, tokens, raw), options, true);
}

absl::Status CheckFrameFits(const FrameHeader& header, const Digest& fingerprint, size_t layers,
                            const ModelProfile* profile) {
  if (header.layout_fingerprint != fingerprint) {
    return absl::FailedPreconditionError("the frame belongs to another layout");
  }
  if (header.layers.size() != layers) {
    return absl::DataLossError("frame: its layer count is not the layout's");
  }
  if (!(header.stages & kStageProfile)) return absl::OkStatus();
  if (profile != nullptr && profile->decoding_hash == header.profile_hash) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "the frame needs the model profile ", ToHex(header.profile_hash), "; give it to decode"));
}

absl::StatusOr<FrameInfo> ReadFrameInfo(ByteSpan frame) {
  return ReadFrameInfo(frame, frame.size());
}

absl::StatusOr<FrameInfo> ReadFrameInfo(ByteSpan prefix, uint64_t frame_bytes) {
  LKV_ASSIGN_OR_RETURN(const ParsedFrame parsed, ParseFrameHeader(prefix, frame_bytes));
  return MakeInfo(parsed.header, frame_bytes);
}

absl::StatusOr<FrameDecoder> FrameDecoder::Open(ByteSpan frame, const Layout& layout,
                                                const ModelProfile* profile, CodecBackend backend) {
  LKV_ASSIGN_OR_RETURN(FrameDecoder out, OpenPrefix(frame, frame.size(), layout, profile, backend));
  out.frame_ = frame;
  return out;
}

absl::StatusOr<FrameDecoder> FrameDecoder::OpenPrefix(ByteSpan prefix, uint64_t frame_bytes,
                                                      const Layout& layout,
                                                      const ModelProfile* profile,
                                                      CodecBackend backend) {
  LKV_ASSIGN_OR_RETURN(const ParsedFrame parsed, ParseFrameHeader(prefix, frame_bytes));
  const FrameHeader& header = parsed.header;
  LKV_RETURN_IF_ERROR(
      CheckFrameFits(header, LayoutFingerprint(layout), layout.layers.size(), profile));
  FrameDecoder out;
  LKV_ASSIGN_OR_RETURN(out.kernels_, KernelsFor(backend));
  out.info_ = MakeInfo(header, frame_bytes);
  if (out.info_.needs_profile) out.profile_ = profile;
  out.layout_ = &layout;
  out.layer_offsets_ = parsed.layer_offsets;
  for (const LayerEntry& layer : header.layers) out.layer_crcs_.push_back(layer.crc32c);
  out.value_unit_16_ = header.value_unit_16;
  out.mass_ = header.stages & kStageMass;
  if (!out.info_.quality.exact) {
    out.rope_ =
        std::make_shared<ChunkRope>(layout, header.start_position, header.tokens, header.keep);
  }
  return out;
}

absl::Status FrameDecoder::DecodeLayer(uint32_t layer,
                                       const std::vector<MutablePlaneView>& planes) const {
  if (layer >= info_.layers || frame_.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("the frame at hand has no layer ", layer));
  }
  const uint64_t offset = layer_offsets_[layer];
  return DecodeLayerBytes(layer, frame_.subspan(offset, layer_offsets_[layer + 1] - offset),
                          planes);
}

absl::Status FrameDecoder::DecodeLayerBytes(uint32_t layer, ByteSpan bytes,
                                            const std::vector<MutablePlaneView>& planes) const {
  if (layer >= info_.layers || planes.size() != layout_->layers[layer].planes.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the layout has no layer ", layer, " with ", planes.size(), " planes"));
  }
  LKV_RETURN_IF_ERROR(CheckLayer(bytes, layer, layer_crcs_[layer]));
  const LayerSpec& spec = layout_->layers[layer];
  const uint32_t rows = info_.tokens - info_.evicted_tokens;
  if (info_.quality.exact) {
    LKV_RETURN_IF_ERROR(DecodeExactLayer(spec, rows, bytes, planes));
  } else {
    const LatticeContext context{
        spec,           rows,      *rope_, profile_ ? &profile_->layers[layer] : nullptr,
        value_unit_16_, *kernels_, mass_};
    LKV_RETURN_IF_ERROR(info_.preset == PresetId::kSeed
                            ? DecodeSeedLayer(context, bytes, planes)
                            : DecodeLatticeLayer(context, bytes, planes));
  }
  if (!info_.keep.empty()) SpreadKept(spec, info_.keep, planes);
  return absl::OkStatus();
}

absl::Status DecodeFrame(const FrameDecoder& decoder, const Layout& layout, MutableByteSpan raw) {
  const uint32_t tokens = decoder.info().tokens;
  if (raw.size() != layout.token_bytes() * tokens) {
    return absl::InvalidArgumentError("the output's size is not the chunk's");
  }
  std::byte* at = raw.data();
  for (uint32_t l = 0; l < layout.layers.size(); ++l) {
    std::vector<MutablePlaneView> planes;
    for (const PlaneSpec& plane : layout.layers[l].planes) {
      planes.push_back(ContiguousPlane(plane, at));
      at += plane.token_bytes() * tokens;
    }
    LKV_RETURN_IF_ERROR(decoder.DecodeLayer(l, planes));
  }
  return absl::OkStatus();
}

}  // namespace latticekv
