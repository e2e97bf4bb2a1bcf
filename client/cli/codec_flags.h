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
FlagSpec BackendFlag();
FlagSpec ThreadsFlag();

// --preset, kDefaultPreset without it. UsageError for a name that does not exist.
absl::StatusOr<PresetId> ReadPreset(const Arguments& arguments);
// --profile for `layout`; nothing without it.
absl::StatusOr<std::optional<ModelProfile>> ReadProfile(const Arguments& arguments,
                                                        const Layout& layout);
// UNIMPLEMENTED for a backend this build lacks, UsageError for one that does not exist.
absl::Status CheckBackend(const Arguments& arguments);
// --threads; all cores without it.
absl::StatusOr<size_t> ReadThreads(const Arguments& arguments);

// LoadCache, with its notices on stderr.
absl::StatusOr<CacheFile> LoadCacheWithNotices(const std::string& path);

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_CLI_CODEC_FLAGS_H_
