// latticekv bench codec: speed of encoding and decoding, and where the time goes.
#include <algorithm>
#include <chrono>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/cli/codec_flags.h"
#include "client/cli/command.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "client/cli/synthetic_cache.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/codec/stage_timer.h"

namespace latticekv {
namespace {

constexpr uint64_t kMaxBenchTokens = 1 << 20;
constexpr uint64_t kMaxBenchSeconds = 3600;

// What is encoded: a cache file or made-up chunks, held in memory.
struct Workload {
  std::optional<CacheFile> cache;
  std::vector<ByteVector> chunks;  // without a cache
  Layout layout;
  uint32_t tokens = 0;
  uint32_t chunk_tokens = 0;
  std::optional<ModelProfile> profile;

  size_t chunk_count() const { return (tokens + chunk_tokens - 1) / chunk_tokens; }
  uint32_t TokensOf(size_t chunk) const {
    return std::min(chunk_tokens, tokens - static_cast<uint32_t>(chunk) * chunk_tokens);
  }
  std::vector<std::vector<PlaneView>> Views(size_t chunk) const {
    return cache ? cache->Views(chunk * chunk_tokens)
                 : RawChunkViews(layout, TokensOf(chunk), chunks[chunk]);
  }
  uint64_t elements() const {
    uint64_t per_token = 0;
    for (const LayerSpec& layer : layout.layers) {
      for (const PlaneSpec& plane : layer.planes) {
        per_token += uint64_t{plane.heads} * plane.head_dim;
      }
    }
    return per_token * tokens;
  }
};

struct PresetResult {
  PresetId preset;
  uint64_t frame_bytes = 0;
  Quality quality;
  double encode_seconds = 0, decode_seconds = 0;  // for one pass over the workload
  StageTimes encode_stages, decode_stages;
};

double Seconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
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

absl::StatusOr<Workload> MakeWorkload(const Arguments& arguments) {
  Workload out;
  LKV_ASSIGN_OR_RETURN(const uint64_t chunk,
                       arguments.GetNumber("chunk", limits::kMaxChunkTokens,
                                           limits::kMinChunkTokens, limits::kMaxChunkTokens));
  out.chunk_tokens = static_cast<uint32_t>(chunk);
  if (arguments.Has("input")) {
    LKV_ASSIGN_OR_RETURN(out.cache, LoadCacheWithNotices(arguments.Get("input")));
    out.layout = out.cache->layout;
    out.tokens = out.cache->tokens;
    LKV_ASSIGN_OR_RETURN(out.profile, ReadProfile(arguments, out.layout));
    return out;
  }
  if (arguments.Has("profile")) return UsageError("--profile needs --input");
  LKV_ASSIGN_OR_RETURN(const uint64_t layers,
                       arguments.GetNumber("layers", 30, 1, limits::kMaxLayers));
  LKV_ASSIGN_OR_RETURN(const uint64_t heads, arguments.GetNumber("heads", 3, 1, limits::kMaxHeads));
  LKV_ASSIGN_OR_RETURN(const uint64_t head_dim,
                       arguments.GetNumber("head-dim", 64, 8, limits::kMaxHeadDim));
  LKV_ASSIGN_OR_RETURN(const uint64_t tokens,
                       arguments.GetNumber("tokens", 1024, 1, kMaxBenchTokens));
  out.tokens = static_cast<uint32_t>(tokens);
  out.layout =
      MakeUniformLayout("synthetic", static_cast<uint32_t>(layers), static_cast<uint32_t>(heads),
                        static_cast<uint32_t>(head_dim), DType::kF16,
                        {RopeStyle::kNeox, static_cast<uint32_t>(head_dim), 10000.0});
  if (absl::Status status = ValidateLayout(out.layout); !status.ok()) {
    return UsageError(std::string(status.message()));
  }
  out.profile = MakeSyntheticProfile(out.layout);
  Progress progress("making chunk", out.chunk_count());
  for (size_t i = 0; i < out.chunk_count(); ++i) {
    out.chunks.push_back(
        MakeSyntheticChunk(out.layout, uint64_t{i} * out.chunk_tokens, out.TokensOf(i)));
    progress.Add();
  }
  return out;
}

absl::StatusOr<std::vector<ByteVector>> EncodePass(const Workload& work, PresetId preset) {
  std::vector<ByteVector> frames;
  EncodeOptions options;
  options.preset = preset;
  if (work.profile) options.profile = &*work.profile;
  for (size_t i = 0; i < work.chunk_count(); ++i) {
    options.start_position = uint64_t{i} * work.chunk_tokens;
    LKV_ASSIGN_OR_RETURN(ByteVector frame,
                         EncodeFrame(work.layout, work.TokensOf(i), work.Views(i), options));
    frames.push_back(std::move(frame));
  }
  return frames;
}

absl::Status DecodePass(const Workload& work, const std::vector<ByteVector>& frames,
                        ByteVector& raw) {
  for (size_t i = 0; i < frames.size(); ++i) {
    LKV_ASSIGN_OR_RETURN(
        const FrameDecoder decoder,
        FrameDecoder::Open(frames[i], work.layout, work.profile ? &*work.profile : nullptr));
    raw.resize(work.layout.token_bytes() * work.TokensOf(i));
    LKV_RETURN_IF_ERROR(DecodeFrame(decoder, work.layout, raw));
  }
  return absl::OkStatus();
}

// Repeats `pass` for `min_seconds`; the mean time of one pass, its stages in `stages`.
template <typename Pass>
absl::StatusOr<double> TimePasses(double min_seconds, const Pass& pass, StageTimes& stages) {
  stage_times = &stages;
  const auto start = std::chrono::steady_clock::now();
  size_t passes = 0;
  absl::Status status;
  do {
    status = pass();
    ++passes;
  } while (status.ok() && Seconds(start) < min_seconds);
  const double seconds = Seconds(start);
  stage_times = nullptr;
  if (!status.ok()) return status;
  for (double& stage : stages.seconds) stage /= static_cast<double>(passes);
  return seconds / static_cast<double>(passes);
}

absl::StatusOr<PresetResult> BenchPreset(const Workload& work, PresetId preset,
                                         double min_seconds) {
  PresetResult out;
  out.preset = preset;
  // The first pass warms caches and gives the frames.
  LKV_ASSIGN_OR_RETURN(const std::vector<ByteVector> frames, EncodePass(work, preset));
  QualitySum quality;
  for (const ByteVector& frame : frames) {
    LKV_ASSIGN_OR_RETURN(const FrameInfo info, ReadFrameInfo(frame));
    out.frame_bytes += frame.size();
    quality.Add(info.quality, info.tokens);
  }
  out.quality = quality.Result();
  ByteVector raw;
  LKV_RETURN_IF_ERROR(DecodePass(work, frames, raw));
  LKV_ASSIGN_OR_RETURN(
      out.encode_seconds,
      TimePasses(
          min_seconds, [&] { return EncodePass(work, preset).status(); }, out.encode_stages));
  LKV_ASSIGN_OR_RETURN(
      out.decode_seconds,
      TimePasses(
          min_seconds, [&] { return DecodePass(work, frames, raw); }, out.decode_stages));
  return out;
}

// MB/s of input as if it were fp16, whatever its dtype.
double MbPerS(const Workload& work, double seconds) {
  return 2.0 * static_cast<double>(work.elements()) / 1e6 / seconds;
}

Json StagesJson(const StageTimes& stages, double total) {
  Json json = Json::object();
  double known = 0;
  for (size_t s = 0; s < stages.seconds.size(); ++s) {
    if (stages.seconds[s] == 0) continue;
    json[std::string(kCodecStageNames[s])] = stages.seconds[s];
    known += stages.seconds[s];
  }
  json["other"] = std::max(total - known, 0.0);
  return json;
}

void PrintBenchJson(const Workload& work, const std::vector<PresetResult>& results) {
  Json presets = Json::array();
  for (const PresetResult& r : results) {
    presets.push_back({{"preset", PresetName(r.preset)},
                       {"encode_mb_per_s", MbPerS(work, r.encode_seconds)},
                       {"decode_mb_per_s", MbPerS(work, r.decode_seconds)},
                       {"bits_per_element", 8.0 * static_cast<double>(r.frame_bytes) /
                                                static_cast<double>(work.elements())},
                       {"quality", QualityJson(r.quality)},
                       {"encode_seconds", r.encode_seconds},
                       {"decode_seconds", r.decode_seconds},
                       {"encode_stage_seconds", StagesJson(r.encode_stages, r.encode_seconds)},
                       {"decode_stage_seconds", StagesJson(r.decode_stages, r.decode_seconds)}});
  }
  PrintJson({{"backend", "scalar"},
             {"threads", 1},
             {"input", work.cache ? work.cache->reader.path() : "synthetic"},
             {"layout", LayoutJson(work.layout)},
             {"tokens", work.tokens},
             {"chunk_tokens", work.chunk_tokens},
             {"presets", std::move(presets)}});
}

// A table of stages (rows) and presets (columns), in ns an element.
void PrintStages(const char* title, const Workload& work, const std::vector<PresetResult>& results,
                 bool encode) {
  std::vector<std::vector<std::string>> rows = {{title}};
  for (const PresetResult& r : results) rows[0].push_back(std::string(PresetName(r.preset)));
  for (size_t s = 0; s <= kCodecStageNames.size(); ++s) {
    const bool other = s == kCodecStageNames.size();
    std::vector<std::string> row = {other ? "other" : std::string(kCodecStageNames[s])};
    bool any = other;
    for (const PresetResult& r : results) {
      const StageTimes& stages = encode ? r.encode_stages : r.decode_stages;
      double seconds = encode ? r.encode_seconds : r.decode_seconds;
      if (!other) seconds = stages.seconds[s];
      for (size_t i = 0; other && i < stages.seconds.size(); ++i) seconds -= stages.seconds[i];
      any |= seconds > 0;
      row.push_back(Fixed(std::max(seconds, 0.0) * 1e9 / static_cast<double>(work.elements()), 3));
    }
    if (any) rows.push_back(std::move(row));
  }
  PrintTable(rows);
}

void PrintBenchText(const Workload& work, const std::vector<PresetResult>& results) {
  PrintFields({{"layout", LayoutText(work.layout)},
               {"tokens", absl::StrCat(work.tokens, " in chunks of ", work.chunk_tokens)},
               {"backend", "scalar, one core; MB/s of fp16 input"}});
  std::vector<std::vector<std::string>> rows = {
      {"PRESET", "ENCODE MB/s", "DECODE MB/s", "BITS", "QUALITY"}};
  for (const PresetResult& r : results) {
    rows.push_back(
        {std::string(PresetName(r.preset)), Fixed(MbPerS(work, r.encode_seconds), 1),
         Fixed(MbPerS(work, r.decode_seconds), 1),
         Fixed(8.0 * static_cast<double>(r.frame_bytes) / static_cast<double>(work.elements()), 3),
         QualityText(r.quality)});
  }
  std::cout << "\n";
  PrintTable(rows);
  std::cout << "\n";
  PrintStages("ENCODE, ns/element", work, results, true);
  std::cout << "\n";
  PrintStages("DECODE, ns/element", work, results, false);
}

absl::Status BenchCodec(const Arguments& arguments) {
  LKV_RETURN_IF_ERROR(CheckBackend(arguments));
  LKV_ASSIGN_OR_RETURN(const std::vector<PresetId> presets, ReadPresets(arguments));
  LKV_ASSIGN_OR_RETURN(const uint64_t seconds,
                       arguments.GetNumber("seconds", 1, 0, kMaxBenchSeconds));
  LKV_ASSIGN_OR_RETURN(const Workload work, MakeWorkload(arguments));
  std::vector<PresetResult> results;
  {
    Progress progress("measuring preset", presets.size());
    for (PresetId preset : presets) {
      LKV_ASSIGN_OR_RETURN(PresetResult result,
                           BenchPreset(work, preset, static_cast<double>(seconds)));
      results.push_back(std::move(result));
      progress.Add();
    }
  }
  if (arguments.Has("json")) {
    PrintBenchJson(work, results);
  } else {
    PrintBenchText(work, results);
  }
  return absl::OkStatus();
}

}  // namespace

Command BenchCodecCommand() {
  return {{"bench codec",
           "",
           0,
           0,
           "Measure encoding and decoding on one core, stage by stage.",
           {{"presets", "A,B", "presets to measure (default: all)"},
            {"input", "IN.safetensors", "measure on this cache instead of a made-up one"},
            ProfileFlag("model profile for --input"),
            {"layers", "N", "of the made-up cache (default 30)"},
            {"heads", "N", "KV heads (default 3)"},
            {"head-dim", "N", "channels of a head (default 64)"},
            {"tokens", "N", "tokens (default 1024)"},
            {"chunk", "N", "tokens per chunk, 16 to 256 (default 256)"},
            {"seconds", "N", "time for each preset and direction (default 1)"},
            BackendFlag(),
            JsonFlag()}},
          BenchCodec};
}

}  // namespace latticekv
