// Model profiles as safetensors files, and how to learn one from caches.
#ifndef LATTICEKV_CLIENT_SRC_PROFILE_FILE_H_
#define LATTICEKV_CLIENT_SRC_PROFILE_FILE_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/src/cache_file.h"
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
  const Layout& layout() const { return layout_; }

 private:
  // Mean and sum of squared deviations of each channel, [layers, heads, head_dim].
  struct Moments {
    std::vector<double> mean, deviation;
    void Merge(const Moments& other, double weight, double other_weight);
  };
  static Moments Measure(const CacheFile& cache, size_t plane);
  static void FillMoments(const Moments& moments, double weight, std::vector<float>& mean,
                          std::vector<float>& sigma);

  Layout layout_;
  double tokens_ = 0;  // that count for the moments
  double energy_tokens_ = 0;
  Moments key_, value_;
  std::vector<double> energy_;
};

// Writes `statistics` as LoadProfile reads them.
absl::Status WriteProfile(const std::string& path, const Layout& layout,
                          const ProfileStatistics& statistics);

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_PROFILE_FILE_H_
