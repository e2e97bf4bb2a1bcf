#include "client/cli/codec_flags.h"

#include <algorithm>
#include <iostream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "client/src/profile_file.h"
#include "core/base/status_macros.h"

namespace latticekv {
namespace {

constexpr size_t kMaxThreads = 1024;

}  // namespace

FlagSpec PresetFlag() {
  std::string names;
  for (const Preset& preset : AllPresets()) {
    absl::StrAppend(&names, names.empty() ? "" : ", ", std::string(preset.name));
  }
  return {
      "preset", "NAME",
      absl::StrCat("rate: ", names, " (default ", std::string(PresetName(kDefaultPreset)), ")")};
}

FlagSpec ProfileFlag(const std::string& help) { return {"profile", "P.safetensors", help}; }

FlagSpec ImportanceFlag() {
  return {"importance", "",
          "finer steps for tokens that got much attention; needs attention_mass in the cache"};
}

FlagSpec BackendFlag() {
  return {"backend", "NAME", "auto or scalar (default auto: the fastest of this build)"};
}

FlagSpec ThreadsFlag() { return {"threads", "N", "threads to use (default: one for each core)"}; }

absl::StatusOr<PresetId> ReadPreset(const Arguments& arguments) {
  if (!arguments.Has("preset")) return kDefaultPreset;
  absl::StatusOr<PresetId> preset = ParsePreset(arguments.Get("preset"));
  if (!preset.ok()) return UsageError(std::string(preset.status().message()));
  return preset;
}

absl::StatusOr<std::optional<ModelProfile>> ReadProfile(const Arguments& arguments,
                                                        const Layout& layout) {
  std::optional<ModelProfile> out;
  if (!arguments.Has("profile")) return out;
  LKV_ASSIGN_OR_RETURN(out, LoadProfile(arguments.Get("profile"), layout));
  return out;
}

absl::Status CheckBackend(const Arguments& arguments) {
  const std::string name = arguments.Get("backend", "auto");
  if (name == "auto" || name == "scalar") return absl::OkStatus();
  if (name == "avx2" || name == "avx512" || name == "cuda") {
    return absl::UnimplementedError(
        absl::StrCat("this build lacks the backend ", name,
                     "; use --backend scalar, which reads and writes the "
                     "same bytes"));
  }
  return UsageError(absl::StrCat("unknown backend '", name, "'; use auto or scalar"));
}

absl::StatusOr<size_t> ReadThreads(const Arguments& arguments) {
  const size_t cores = std::max(std::thread::hardware_concurrency(), 1u);
  return arguments.GetNumber("threads", cores, 1, kMaxThreads);
}

absl::StatusOr<CacheFile> LoadCacheWithNotices(const std::string& path) {
  LKV_ASSIGN_OR_RETURN(CacheFile cache, LoadCache(path));
  for (const std::string& notice : cache.notices) {
    std::cerr << "latticekv: '" << path << "': " << notice << "\n";
  }
  return cache;
}

}  // namespace latticekv
