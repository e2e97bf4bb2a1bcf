// How one layer of a chunk becomes bytes: the two families of stages behind one signature each.
// Internal to core/codec.
#ifndef LATTICEKV_CORE_CODEC_LAYER_CODEC_H_
#define LATTICEKV_CORE_CODEC_LAYER_CODEC_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/codec/codec.h"
#include "core/codec/frame_format.h"
#include "core/layout/rope.h"

namespace latticekv {

// Rotary tables of one chunk, one for each distinct RopeSpec of the layout: [token][pair].
class ChunkRope {
 public:
  // `keep` empty, or [tokens]: tables then have rows for the tokens kept.
  ChunkRope(const Layout& layout, uint64_t start_position, uint32_t tokens,
            const std::vector<uint8_t>& keep = {});
  // Null for planes without rotary embedding.
  const SinCos* Table(const RopeSpec& rope) const;
  bool empty() const { return tables_.empty(); }

 private:
  std::vector<std::pair<RopeSpec, std::vector<SinCos>>> tables_;
};

struct LayerErrors {
  // Over coded vectors, units of 2^-28: mean over channels of squared logit error (or squared
  // relative key error when unprofiled), squared relative value error.
  ErrorSums within;  // vectors whose steps are no coarser than the preset's: all without kStageMass
  ErrorSums coarse;
};

// What the lattice stages of one layer need to know besides its data.
struct LatticeContext {
  const LayerSpec& layer;
  uint32_t tokens;
  const ChunkRope& rope;
  const std::vector<PlaneProfile>* profile;  // null: none
  int16_t value_unit_16;
  const CpuKernels& kernels;
  bool mass = false;                         // kStageMass
  std::span<const int16_t> key_offset = {};  // with it: [tokens], quarter octaves

  // Null without a profile.
  const HeadProfile* head_profile(size_t plane, uint32_t head) const {
    return profile ? &(*profile)[plane].heads[head] : nullptr;
  }
};

// Encoding choices; `raw_tokens` [tokens] is 1 for tokens to store bit for bit.
struct LatticeChoices {
  double logit_noise;
  StatsMode stats;
  std::vector<uint8_t> raw_tokens;
  // With kStageMass: [tokens], 16 log2 of the attention that each query paid to the token.
  std::vector<int32_t> mass_16 = {};
  // The same of a token whose step is the preset's; unknown: the mean over the vectors not raw.
  std::optional<int32_t> mass_level_16 = {};
  // Of a unit's errors: its steps become finer until they are within, or its vectors raw. A bound
  // for keys needs query energy of all heads.
  ErrorBounds bounds = {};
};

struct EncodedLayer {
  ByteVector bytes;
  LayerErrors errors;
  bool uses_profile = false;
};

// FAILED_PRECONDITION when the frame belongs to another layout than the one of `fingerprint`, or
// needs another profile than `profile` (may be null; the error names it); DATA_LOSS when it has not
// `layers` layers.
absl::Status CheckFrameFits(const FrameHeader& header, const Digest& fingerprint, size_t layers,
                            const ModelProfile* profile);

// The parts of encoding a frame that do not depend on where its layers are encoded.
// The header of a chunk that fits the layout, its layers still missing. Errors of EncodeFrame.
// `alike` may be what this gave for another chunk with the same layout, preset, statistics and
// profile: what follows from those is then not worked out again.
absl::StatusOr<FrameHeader> StartFrameHeader(const Layout& layout, uint32_t tokens,
                                             const std::vector<std::vector<PlaneView>>& planes,
                                             const EncodeOptions& options,
                                             const FrameHeader* alike = nullptr);
// [tokens] 1 for tokens to store bit for bit.
std::vector<uint8_t> RawTokens(uint32_t tokens, const EncodeOptions& options);
// The frame needs `profile` to decode.
void UseProfile(const ModelProfile& profile, FrameHeader& header);
void AppendLayerEntry(size_t size_bytes, uint32_t crc32c, const LayerErrors& errors,
                      FrameHeader& header);
// Steps of a head's keys with query energy: what they add to (sixteenths), and each channel's.
int16_t KeyBaseFromEnergy(double logit_noise, const HeadProfile& profile);
std::vector<int16_t> KeyStepsFromEnergy(int16_t key_base, const HeadProfile& profile);
// Weights of squared errors in such steps: query energy times squared step, units of 2^-12.
std::vector<uint64_t> LogitWeights(const HeadProfile& profile, const std::vector<int16_t>& steps);

// Calls `work` with 0 .. layers - 1: by `runner`, or here and in order where that is null.
void RunLayers(const LayerRunner* runner, size_t layers, const std::function<void(size_t)>& work);

ByteVector EncodeExactLayer(const LayerSpec& layer, uint32_t tokens,
                            const std::vector<PlaneView>& planes);
absl::Status DecodeExactLayer(const LayerSpec& layer, uint32_t tokens, ByteSpan bytes,
                              const std::vector<MutablePlaneView>& planes);

EncodedLayer EncodeLatticeLayer(const LatticeContext& context, const LatticeChoices& choices,
                                const std::vector<PlaneView>& planes);
absl::Status DecodeLatticeLayer(const LatticeContext& context, ByteSpan bytes,
                                const std::vector<MutablePlaneView>& planes);

// One plane, each byte significance as a zstd frame or as it is where that does not pay, with a u32
// size before each. Decoding reads exactly what encoding appended.
void AppendExactPlane(const PlaneSpec& plane, uint32_t tokens, const PlaneView& view,
                      ByteWriter& out);
absl::Status ReadExactPlane(const PlaneSpec& plane, uint32_t tokens, ByteReader& in,
                            const MutablePlaneView& view);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_LAYER_CODEC_H_
