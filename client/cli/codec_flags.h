// Flags that several commands share, and what they mean.
#ifndef LATTICEKV_CLIENT_CLI_CODEC_FLAGS_H_
#define LATTICEKV_CLIENT_CLI_CODEC_FLAGS_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cli/arguments.h"
#include "client/src/cache_file.h"
#include "core/codec/codec.h"

namespace latticekv {

FlagSpec PresetFlag();
FlagSpec ProfileFlag(const std::string& help);
FlagSpec ImportanceFlag();
FlagSpec KeepFlag();
FlagSpec BackendFlag();
FlagSpec ThreadsFlag();

// --preset, kDefaultPreset without it. UsageError for a name that does not exist.
absl::StatusOr<PresetId> ReadPreset(const Arguments& arguments);
// --presets, names between commas; all without it.
absl::StatusOr<std::vector<PresetId>> ReadPresets(const Arguments& arguments);
// Flags of the preset seed, and what they say; UsageError when one comes with another preset.
std::vector<FlagSpec> SeedFlags();
absl::StatusOr<SeedOptions> ReadSeed(const Arguments& arguments, PresetId preset);
// --profile for `layout`; nothing without it.
absl::StatusOr<std::optional<ModelProfile>> ReadProfile(const Arguments& arguments,
                                                        const Layout& layout);
// --backend as what it comes to on this machine. UsageError for one that does not exist;
// FAILED_PRECONDITION or UNIMPLEMENTED for one that this machine or build lacks.
absl::StatusOr<CodecBackend> ReadBackend(const Arguments& arguments);
// --stats, `otherwise` without it.
absl::StatusOr<StatsMode> ReadStats(const Arguments& arguments, const std::string& otherwise);
// --keep, which tokens of the cache to keep; empty without it.
absl::StatusOr<std::vector<uint8_t>> ReadKeep(const Arguments& arguments, const CacheFile& cache,
                                              uint32_t chunk_tokens);
// --threads; all cores without it.
absl::StatusOr<size_t> ReadThreads(const Arguments& arguments);

// LoadCache, with its notices on stderr.
absl::StatusOr<CacheFile> LoadCacheWithNotices(const std::string& path);

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_CLI_CODEC_FLAGS_H_
