// A made-up cache for benchmarks: channels with means and spreads of their own, keys rotated, value
// norms that differ from token to token.
#ifndef LATTICEKV_CLIENT_CLI_SYNTHETIC_CACHE_H_
#define LATTICEKV_CLIENT_CLI_SYNTHETIC_CACHE_H_

#include <cstdint>

#include "core/base/bytes.h"
#include "core/layout/layout.h"
#include "core/layout/model_profile.h"

namespace latticekv {

// The raw bytes (RawChunkViews) of `tokens` tokens from position `start`, the same for equal
// arguments. Planes are f16.
ByteVector MakeSyntheticChunk(const Layout& layout, uint64_t start, uint32_t tokens);

// A profile with plausible query energies and the statistics that the chunks are made with.
ModelProfile MakeSyntheticProfile(const Layout& layout);

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_CLI_SYNTHETIC_CACHE_H_
