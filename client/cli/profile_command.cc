// latticekv profile learn: a model profile out of caches.
#include <iostream>

#include "absl/strings/str_cat.h"
#include "client/cli/codec_flags.h"
#include "client/cli/command.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "client/src/profile_file.h"
#include "core/base/status_macros.h"

namespace latticekv {
namespace {

constexpr size_t kMaxCaches = 10'000;

absl::Status Learn(const Arguments& arguments) {
  const std::vector<std::string>& files = arguments.positionals();
  ProfileLearner learner;
  uint64_t tokens = 0;
  {
    Progress progress("learning from cache", files.size() - 1);
    for (size_t i = 0; i + 1 < files.size(); ++i) {
      LKV_ASSIGN_OR_RETURN(const CacheFile cache, LoadCacheWithNotices(files[i]));
      LKV_RETURN_IF_ERROR(learner.Add(cache));
      tokens += cache.tokens;
      progress.Add();
    }
  }
  if (!learner.has_query_energy()) {
    std::cerr << "latticekv: not every cache has query_energy; the profile goes without it\n";
  }
  const ProfileStatistics statistics = learner.Finish();
  LKV_ASSIGN_OR_RETURN(const ModelProfile profile, MakeProfile(learner.layout(), statistics));
  LKV_RETURN_IF_ERROR(WriteProfile(files.back(), learner.layout(), statistics));
  const std::string hash = ToHex(ProfileHash(profile));
  if (arguments.Has("json")) {
    PrintJson({{"caches", files.size() - 1},
               {"tokens", tokens},
               {"query_energy", learner.has_query_energy()},
               {"profile_hash", hash}});
    return absl::OkStatus();
  }
  PrintFields({{"caches", absl::StrCat(files.size() - 1)},
               {"tokens", absl::StrCat(tokens)},
               {"layout", LayoutText(learner.layout())},
               {"profile", hash}});
  return absl::OkStatus();
}

}  // namespace

Command ProfileLearnCommand() {
  return {{"profile learn",
           "IN.safetensors... OUT.safetensors",
           2,
           kMaxCaches,
           "Learn a model profile: query energy, means and spreads of several caches.",
           {JsonFlag()}},
          Learn};
}

}  // namespace latticekv
