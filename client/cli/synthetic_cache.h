// A made-up cache for benchmarks: channels with means and spreads of their own, keys rotated, value
// norms that differ from token to token.
#ifndef LATTICEKV_CLIENT_CLI_SYNTHETIC_CACHE_H_
#define LATTICEKV_CLIENT_CLI_SYNTHETIC_CACHE_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "client/cli/arguments.h"
#include "core/base/bytes.h"
#include "core/layout/layout.h"
#include "core/layout/model_profile.h"

namespace latticekv {

// The flags of its shape, and the layout of `model` that they describe: SmolLM2-135M's shape where
// they are not given. UsageError for one that no layout may have.
FlagSpec LayersFlag();
FlagSpec HeadsFlag();
FlagSpec HeadDimFlag();
absl::StatusOr<Layout> ReadSyntheticLayout(const Arguments& arguments, const std::string& model);

// The raw bytes (RawChunkViews) of `tokens` tokens from position `start`, the same for equal
// arguments. Planes are f16.
ByteVector MakeSyntheticChunk(const Layout& layout, uint64_t start, uint32_t tokens);

// A profile with plausible query energies and the statistics that the chunks are made with.
ModelProfile MakeSyntheticProfile(const Layout& layout);

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_CLI_SYNTHETIC_CACHE_H_
