// Rotary phases as integers and their sines and cosines without libm, so that every machine
// computes the same bits (docs/format/frame.md, "Rotary embedding").
#ifndef LATTICEKV_CORE_LAYOUT_ROPE_H_
#define LATTICEKV_CORE_LAYOUT_ROPE_H_

#include <cstdint>
#include <vector>

#include "core/layout/layout.h"
#include "core/layout/rotary_phase.h"

namespace latticekv {

// Turns per position of each rotary pair, in units of 2^-64 turn; rotary_dims/2 of them.
std::vector<uint64_t> RopeFrequencies(const RopeSpec& rope);

// What an engine multiplies sines and cosines with under yarn scaling, and so the rotated channels
// of every key; 1 otherwise. RopeTable leaves it out: keys keep it when their rotation is removed
// and have it when they are rotated again (docs/format/layout.md).
double RopeAttentionFactor(const RopeSpec& rope);

// cos and sin for tokens positions start .. start + tokens - 1: [token][pair].
std::vector<SinCos> RopeTable(const RopeSpec& rope, uint64_t start, uint32_t tokens);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_LAYOUT_ROPE_H_
