#include "client/cli/codec_flags.h"

#include <algorithm>
#include <iostream>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/src/profile_file.h"
#include "core/base/status_macros.h"
#include "core/codec/token_eviction.h"

namespace latticekv {
namespace {

constexpr size_t kMaxThreads = 1024;

}  // namespace

FlagSpec PresetFlag() {
  std::string names;
  for (const Preset& preset : AllPresets()) {
    absl::StrAppend(&names, names.empty() ? "" : ", ", std::string(preset.name));
  }
  return {"preset", "NAME",
          absl::StrCat("rate: ", names, ", seed (default ", std::string(PresetName(kDefaultPreset)),
                       ")")};
}

FlagSpec ProfileFlag(const std::string& help) { return {"profile", "P.safetensors", help}; }

FlagSpec ImportanceFlag() {
  return {"importance", "",
          "finer steps for tokens that got much attention; needs attention_mass in the cache"};
}

FlagSpec KeepFlag() {
  return {"keep", "FRACTION",
          "evict tokens that got little attention until this share is left, over 0 and up to 1; "
          "needs attention_mass in the cache"};
}

FlagSpec BackendFlag() {
  return {"backend", "NAME",
          "auto, scalar, avx2 or avx512: same bytes, other speed (default auto: the fastest here)"};
}

FlagSpec ThreadsFlag() { return {"threads", "N", "threads to use (default: one for each core)"}; }

absl::StatusOr<PresetId> ReadPreset(const Arguments& arguments) {
  if (!arguments.Has("preset")) return kDefaultPreset;
  absl::StatusOr<PresetId> preset = ParsePreset(arguments.Get("preset"));
  if (!preset.ok()) return UsageError(std::string(preset.status().message()));
  return preset;
}

absl::StatusOr<std::vector<PresetId>> ReadPresets(const Arguments& arguments) {
  std::vector<PresetId> out;
  if (!arguments.Has("presets")) {
    for (const Preset& preset : AllPresets()) out.push_back(preset.id);
    return out;
  }
  for (absl::string_view part : absl::StrSplit(arguments.Get("presets"), ',')) {
    const absl::StatusOr<PresetId> preset = ParsePreset(std::string(part));
    if (!preset.ok()) return UsageError(std::string(preset.status().message()));
    out.push_back(*preset);
  }
  return out;
}

std::vector<FlagSpec> SeedFlags() {
  return {
      {"key-bits", "N", "preset seed: bits of keys (default 3)"},
      {"value-bits", "N", "preset seed: bits of values (default 2)"},
      {"seed-scales", "S", "preset seed: a scale for each vector or group of 8 (default vector)"},
      {"seed-delta", "D", "preset seed: differences between tokens, on or off (default on)"}};
}

absl::StatusOr<SeedOptions> ReadSeed(const Arguments& arguments, PresetId preset) {
  SeedOptions out;
  if (preset != PresetId::kSeed) {
    for (const FlagSpec& flag : SeedFlags()) {
      if (arguments.Has(flag.name)) {
        return UsageError(absl::StrCat("--", std::string(flag.name), " goes with --preset seed"));
      }
    }
    return out;
  }
  LKV_ASSIGN_OR_RETURN(const uint64_t key_bits,
                       arguments.GetNumber("key-bits", out.key_bits, 1, kMaxSeedBits));
  LKV_ASSIGN_OR_RETURN(const uint64_t value_bits,
                       arguments.GetNumber("value-bits", out.value_bits, 1, kMaxSeedBits));
  out.key_bits = static_cast<int>(key_bits);
  out.value_bits = static_cast<int>(value_bits);
  const std::string scales = arguments.Get("seed-scales", "vector");
  const std::string delta = arguments.Get("seed-delta", "on");
  if (scales != "vector" && scales != "group")
    return UsageError("--seed-scales is vector or group");
  if (delta != "on" && delta != "off") return UsageError("--seed-delta is on or off");
  out.group_scales = scales == "group";
  out.token_delta = delta == "on";
  return out;
}

absl::StatusOr<std::optional<ModelProfile>> ReadProfile(const Arguments& arguments,
                                                        const Layout& layout) {
  std::optional<ModelProfile> out;
  if (!arguments.Has("profile")) return out;
  LKV_ASSIGN_OR_RETURN(out, LoadProfile(arguments.Get("profile"), layout));
  return out;
}

absl::StatusOr<CodecBackend> ReadBackend(const Arguments& arguments) {
  const std::string name = arguments.Get("backend", "auto");
  if (name == "cuda") {
    return absl::UnimplementedError(
        "this command lacks the backend cuda, which bench codec and the daemon have; use --backend "
        "auto, which reads and writes the same bytes");
  }
  const absl::StatusOr<CodecBackend> backend = ParseCodecBackend(name);
  if (!backend.ok()) return UsageError(std::string(backend.status().message()));
  return ResolveCodecBackend(*backend);
}

absl::StatusOr<StatsMode> ReadStats(const Arguments& arguments, const std::string& otherwise) {
  const std::string name = arguments.Get("stats", otherwise);
  if (name == "own") return StatsMode::kOwn;
  if (name == "profile") return StatsMode::kProfile;
  if (name == "auto") return StatsMode::kAuto;
  return UsageError(absl::StrCat("--stats is '", name, "', must be own, profile or auto"));
}

absl::StatusOr<std::vector<uint8_t>> ReadKeep(const Arguments& arguments, const CacheFile& cache,
                                              uint32_t chunk_tokens) {
  if (!arguments.Has("keep")) return std::vector<uint8_t>();
  double fraction = 0;
  if (!absl::SimpleAtod(arguments.Get("keep"), &fraction) || !(fraction > 0 && fraction <= 1)) {
    return UsageError(absl::StrCat("--keep is '", arguments.Get("keep"),
                                   "', must be a fraction of the tokens, over 0 and up to 1"));
  }
  LKV_ASSIGN_OR_RETURN(const AttentionMass mass, cache.Mass());
  return ChooseKeptTokens(mass, cache.layout.layers.size(), cache.tokens, fraction, chunk_tokens);
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
