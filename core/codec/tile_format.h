// Tiles: runs of (plane, head) units of one layer, the unit of the bitstream. Internal to
// core/codec; docs/format/frame.md, "Layer" and "Tile".
#ifndef LATTICEKV_CORE_CODEC_TILE_FORMAT_H_
#define LATTICEKV_CORE_CODEC_TILE_FORMAT_H_

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "core/codec/side_arithmetic.h"
#include "core/layout/layout.h"
#include "core/layout/model_profile.h"

namespace latticekv {

inline constexpr int kLanes = 32;
inline constexpr size_t kUnitHeaderBytes = 9;
// Elements a tile should have: enough to pay for its 32 coder states, few enough for a GPU's warps.
inline constexpr size_t kTileElements = 65536;

// One head of a key or value plane.
struct UnitRef {
  size_t plane;
  uint32_t head;
  const PlaneSpec* spec;
};

// Units of a layer in order: planes in layout order (opaque ones left out), heads within.
std::vector<UnitRef> LayerUnits(const LayerSpec& layer);
// Unit counts of the encoder's tiles: even runs of at least kTileElements where the layer has so
// many.
std::vector<uint32_t> SplitIntoTiles(const std::vector<UnitRef>& units, uint32_t tokens);

// A tile as a layer's table lists it.
struct TileSpan {
  std::span<const UnitRef> units;
  ByteSpan bytes;
};
// Reads the tile table and the tiles behind it, which together hold all of `units` and no more.
absl::StatusOr<std::vector<TileSpan>> ReadTiles(std::span<const UnitRef> units, ByteReader& in);
// What of a tile follows its raw vectors: 32 states and whole words, or nothing without symbols.
absl::Status CheckCodedSize(bool has_symbols, size_t size_bytes);

enum class MeanSource : uint8_t { kZero = 0, kOwn = 1, kProfile = 2, kDifference = 3 };
enum class SpreadSource : uint8_t { kPooled = 0, kOwn = 1, kProfile = 2, kDifference = 3 };
enum class StepSource : uint8_t { kUniform = 0, kSent = 1, kProfile = 2 };

// How an array of side values is coded: value >> low_bits with the integer table of `spread` (or
// the half one when low_bits > 0), then low_bits raw bits.
struct SideCode {
  uint8_t spread = 0;
  uint8_t low_bits = 0;
};

struct UnitHeader {
  MeanSource mean_source = MeanSource::kZero;
  SpreadSource spread_source = SpreadSource::kPooled;
  StepSource step_source = StepSource::kUniform;
  bool all_raw = false;   // every vector is raw; no list, nothing coded
  bool all_zero = false;  // every element is +0; nothing stored
  uint8_t coset = 0;      // 0..31, probability of the half coset
  int16_t step_base = 0;  // quarter octaves; sixteenths when the profile gives the rest
  int8_t sigma_base = 0;
  SideCode mean_code, sigma_code, step_code;
  std::vector<uint8_t> raw_tokens;  // increasing
};

// What decoding a unit needs, resolved from its header and the profile.
struct UnitPlan {
  UnitRef unit;
  UnitHeader header;
  std::vector<uint16_t> coded;  // tokens that are coded, increasing
  std::vector<uint8_t> raw;     // [tokens] 1 where the vector is raw
  std::vector<int16_t> step;    // keys: per channel; values: per coded vector
  // Frames with kStageMass: per coded vector, quarter octaves over the channel's step (keys) or the
  // step base (values). Empty in others.
  std::vector<int16_t> offset;
  std::vector<int16_t> shifted_sigma;  // with offsets: [shift from the lowest on][channel]
  int lowest_shift = 0;
  std::vector<int32_t> mean;   // per channel, quarter steps
  std::vector<int16_t> sigma;  // per channel, 0..kMaxSigmaIndex

  // Sigma indices under which a coded vector's points are coded, for every one of them: where the
  // row of coded vector `row` begins is in SigmaAt.
  const std::vector<int16_t>& sigma_rows() const { return offset.empty() ? sigma : shifted_sigma; }
  size_t SigmaAt(size_t row) const {
    return offset.empty() ? 0 : (SigmaShift(offset[row]) - lowest_shift) * sigma.size();
  }
};

// Header bytes of one unit, raw token list included.
void AppendUnitHeader(const UnitHeader& header, ByteWriter& out);
absl::StatusOr<UnitHeader> ReadUnitHeader(uint32_t tokens, const UnitRef& unit,
                                          const HeadProfile* profile, ByteReader& in);

// Number of step values that a unit of keys sends: one per rotary pair and per channel not rotated.
uint32_t KeyStepSlots(const PlaneSpec& plane);
// Channel -> slot of KeyStepSlots.
uint32_t KeyStepSlot(const PlaneSpec& plane, uint32_t channel);

// Fills `coded` and `raw` from the header's list.
void ResolveRows(uint32_t tokens, UnitPlan& plan);
// Steps without what the bitstream adds: sized, each the header's base or what the profile gives.
void ResolveSteps(const HeadProfile* profile, UnitPlan& plan);
// Means and sigma indices without what the bitstream adds. Needs the final steps.
void ResolveStatistics(const HeadProfile* profile, int16_t value_unit_16, UnitPlan& plan);
// Fills what sigma_rows() gives, from offsets and final sigma indices.
void ShiftSigmas(UnitPlan& plan);
// False when a step, mean or sigma index is out of the format's range.
bool PlanIsInRange(const UnitPlan& plan);

// The step offsets of a layer's tokens, kStageMass: lowest, width and `width` bits each.
void AppendTokenOffsets(std::span<const int16_t> offsets, ByteWriter& out);
absl::StatusOr<std::vector<int16_t>> ReadTokenOffsets(uint32_t tokens, ByteReader& in);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_TILE_FORMAT_H_
