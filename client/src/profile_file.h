// Model profiles as safetensors files, and how to learn one from caches.
#ifndef LATTICEKV_CLIENT_SRC_PROFILE_FILE_H_
#define LATTICEKV_CLIENT_SRC_PROFILE_FILE_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/src/cache_file.h"
#include "core/codec/channel_statistics.h"
#include "core/layout/model_profile.h"

namespace latticekv {

// Reads query_energy, key_mean, key_sigma, value_mean and value_sigma, F32, as many of them as the
// file has (a cache with query_energy will do). INVALID_ARGUMENT when it has none or they do not
// fit `layout`.
absl::StatusOr<ModelProfile> LoadProfile(const std::string& path, const Layout& layout);

// Merges the statistics of several caches of one layout, each weighted by its tokens. The first
// kSinkTokens tokens of each are left out of means and spreads. Not thread-safe.
class ProfileLearner {
 public:
  // INVALID_ARGUMENT when `cache` has another layout than those before or too few tokens.
  absl::Status Add(const CacheFile& cache);
  // Statistics in the layout's channel order; query_energy is empty unless every cache had it.
  ProfileStatistics Finish() const;
  bool has_query_energy() const { return !energy_.empty(); }
  // After the first Add.
  const Layout& layout() const { return statistics_->layout(); }

 private:
  std::optional<ChannelStatistics> statistics_;
  double energy_tokens_ = 0;
  std::vector<double> energy_;
};

// Writes `statistics` as LoadProfile reads them.
absl::Status WriteProfile(const std::string& path, const Layout& layout,
                          const ProfileStatistics& statistics);

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_PROFILE_FILE_H_
