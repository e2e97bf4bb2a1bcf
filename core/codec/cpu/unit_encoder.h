// Chooses how one (plane, head) unit is coded. Internal to core/codec/cpu.
#ifndef LATTICEKV_CORE_CODEC_CPU_UNIT_ENCODER_H_
#define LATTICEKV_CORE_CODEC_CPU_UNIT_ENCODER_H_

#include <cstdint>
#include <vector>

#include "core/codec/cpu/tile_coder.h"
#include "core/codec/layer_codec.h"

namespace latticekv {

class PointBuffers;

// One unit's vectors.
struct UnitData {
  PlaneView view;                // of the unit's plane, from the head's first element
  std::vector<float> canonical;  // [tokens][head_dim] in canonical order, before rotary embedding
  std::vector<uint8_t> raw;      // [tokens] 1: to be stored bit for bit
  bool all_zero = false;         // every element is +0

  // A vector as it is stored.
  const std::byte* Stored(size_t token) const { return view.data + token * view.token_stride; }
};

// Loads a unit and marks its raw vectors: tokens asked for, and vectors with a non-finite value.
// Reuses the memory of `data`.
void LoadUnit(const LatticeContext& context, const LatticeChoices& choices, const UnitRef& unit,
              const PlaneView& view, UnitData& data);

// Quantises and picks sources of steps, means and spreads by coded size, with finer steps than the
// contract's where the choices bound the errors. Marks vectors of `data` raw that have no norm.
// Adds the unit's squared errors, measured on what a decoder will write.
CodedUnit EncodeUnit(const LatticeContext& context, const LatticeChoices& choices,
                     const UnitRef& unit, UnitData& data, PointBuffers& buffers,
                     LayerErrors& errors);

// True when decoding the unit needs the model profile.
bool UsesProfile(const UnitHeader& header);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CPU_UNIT_ENCODER_H_
