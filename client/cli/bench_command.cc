// latticekv bench codec: speed of encoding and decoding, and where the time goes.
#include <time.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <iostream>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/bench_gpu.h"
#include "client/cli/codec_flags.h"
#include "client/cli/command.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "client/cli/synthetic_cache.h"
#include "client/src/parallel_for.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/codec/stage_timer.h"

namespace latticekv {
namespace {

constexpr uint64_t kMaxBenchTokens = 1 << 20;
constexpr uint64_t kMaxBenchSeconds = 3600;
constexpr uint64_t kMaxBenchThreads = 1024;

// What is encoded: a cache file or made-up chunks, held in memory.
struct Workload {
  std::optional<CacheFile> cache;
  std::vector<ByteVector> chunks;  // without a cache
  Layout layout;
  uint32_t tokens = 0;
  uint32_t chunk_tokens = 0;
  std::optional<ModelProfile> profile;
  StatsMode stats = StatsMode::kAuto;
  CodecBackend backend = CodecBackend::kAuto;
  size_t threads = 1;

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
  // CPU time of all threads for one pass over the workload, and time on the clock.
  double encode_seconds = 0, decode_seconds = 0;
  double encode_wall_seconds = 0, decode_wall_seconds = 0;
  // By the clock on one thread alone; 0 when that is all there was.
  double encode_single_seconds = 0, decode_single_seconds = 0;
  StageTimes encode_stages, decode_stages;
};

double Seconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
}

// Of the calling thread: what others do on the machine does not count.
double CpuSeconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
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
  LKV_ASSIGN_OR_RETURN(const uint64_t tokens,
                       arguments.GetNumber("tokens", 1024, 1, kMaxBenchTokens));
  out.tokens = static_cast<uint32_t>(tokens);
  LKV_ASSIGN_OR_RETURN(out.layout, ReadSyntheticLayout(arguments, "synthetic"));
  out.profile = MakeSyntheticProfile(out.layout);
  Progress progress("making chunk", out.chunk_count());
  for (size_t i = 0; i < out.chunk_count(); ++i) {
    out.chunks.push_back(
        MakeSyntheticChunk(out.layout, uint64_t{i} * out.chunk_tokens, out.TokensOf(i)));
    progress.Add();
  }
  return out;
}

absl::StatusOr<ByteVector> EncodeChunk(const Workload& work, PresetId preset, size_t chunk) {
  EncodeOptions options;
  options.preset = preset;
  options.stats = work.stats;
  options.backend = work.backend;
  if (work.profile) options.profile = &*work.profile;
  options.start_position = uint64_t{chunk} * work.chunk_tokens;
  return EncodeFrame(work.layout, work.TokensOf(chunk), work.Views(chunk), options);
}

absl::Status DecodeChunk(const Workload& work, ByteSpan frame, size_t chunk, ByteVector& raw) {
  LKV_ASSIGN_OR_RETURN(const FrameDecoder decoder,
                       FrameDecoder::Open(frame, work.layout,
                                          work.profile ? &*work.profile : nullptr, work.backend));
  raw.resize(work.layout.token_bytes() * work.TokensOf(chunk));
  return DecodeFrame(decoder, work.layout, raw);
}

// Every chunk in turn, or, with several threads, each thread every chunk in turn from one of its
// own: all have the same work and the whole of it is threads times the workload.
template <typename Work>
absl::Status Pass(const Workload& work, size_t thread, const Work& one) {
  for (size_t i = 0; i < work.chunk_count(); ++i) {
    LKV_RETURN_IF_ERROR(one((i + thread) % work.chunk_count()));
  }
  return absl::OkStatus();
}

struct PassTime {
  double cpu_seconds, wall_seconds;  // of one thread's pass; of the pass of all
};

// Repeats passes on `threads` threads for `min_seconds`. `make` gives each thread its function of a
// chunk.
template <typename Make>
absl::StatusOr<PassTime> TimePasses(const Workload& work, size_t threads, double min_seconds,
                                    const Make& make) {
  std::vector<double> cpu(threads), passes(threads);
  const auto start = std::chrono::steady_clock::now();
  LKV_RETURN_IF_ERROR(ParallelFor(threads, threads, [&](size_t t) -> absl::Status {
    const auto one = make();
    const double before = CpuSeconds();
    do {
      LKV_RETURN_IF_ERROR(Pass(work, t, one));
      ++passes[t];
    } while (Seconds(start) < min_seconds);
    cpu[t] = CpuSeconds() - before;
    return absl::OkStatus();
  }));
  const double wall = Seconds(start);
  const double all = std::accumulate(passes.begin(), passes.end(), 0.0);
  return PassTime{std::accumulate(cpu.begin(), cpu.end(), 0.0) / all, wall / all};
}

// Arithmetic in registers alone: what any program can get of the cores.
uint64_t Churn(uint64_t seed) {
  std::array<uint64_t, 8> x;
  for (size_t i = 0; i < x.size(); ++i) x[i] = seed + i;
  for (int round = 0; round < 100'000; ++round) {
    for (uint64_t& v : x) v = v * 6364136223846793005u + 1442695040888963407u;
  }
  return std::accumulate(x.begin(), x.end(), uint64_t{0});
}

// How many times the work of one thread `threads` do in the same time when nothing is shared but
// the cores: what scaling can be expected of the codec here.
double ControlScaling(size_t threads, double seconds) {
  const auto rate = [seconds](size_t count) {
    std::vector<double> rounds(count);
    std::atomic<uint64_t> sink = 0;
    const auto start = std::chrono::steady_clock::now();
    const absl::Status done = ParallelFor(count, count, [&](size_t t) {
      double done_here = 0;
      do {
        sink += Churn(t);
        ++done_here;
      } while (Seconds(start) < seconds);
      rounds[t] = done_here;
      return absl::OkStatus();
    });
    return done.ok() ? std::accumulate(rounds.begin(), rounds.end(), 0.0) / Seconds(start) : 0.0;
  };
  const double one = rate(1);
  return rate(threads) / one;
}

absl::StatusOr<PresetResult> BenchPreset(const Workload& work, PresetId preset,
                                         double min_seconds) {
  PresetResult out;
  out.preset = preset;
  // The first pass warms caches and gives the frames.
  std::vector<ByteVector> frames(work.chunk_count());
  LKV_RETURN_IF_ERROR(Pass(work, 0, [&](size_t i) -> absl::Status {
    LKV_ASSIGN_OR_RETURN(frames[i], EncodeChunk(work, preset, i));
    return absl::OkStatus();
  }));
  QualitySum quality;
  for (const ByteVector& frame : frames) {
    LKV_ASSIGN_OR_RETURN(const FrameInfo info, ReadFrameInfo(frame));
    out.frame_bytes += frame.size();
    quality.Add(info.quality, info.tokens);
  }
  out.quality = quality.Result();
  const auto encode = [&] {
    return [&](size_t i) { return EncodeChunk(work, preset, i).status(); };
  };
  const auto decode = [&] {
    return [&, raw = std::make_shared<ByteVector>()](size_t i) {
      return DecodeChunk(work, frames[i], i, *raw);
    };
  };
  if (work.threads > 1) {
    LKV_ASSIGN_OR_RETURN(const PassTime single, TimePasses(work, 1, min_seconds, encode));
    out.encode_single_seconds = single.wall_seconds;
  }
  LKV_ASSIGN_OR_RETURN(const PassTime encoded, TimePasses(work, work.threads, min_seconds, encode));
  if (work.threads > 1) {
    LKV_ASSIGN_OR_RETURN(const PassTime single, TimePasses(work, 1, min_seconds, decode));
    out.decode_single_seconds = single.wall_seconds;
  }
  LKV_ASSIGN_OR_RETURN(const PassTime decoded, TimePasses(work, work.threads, min_seconds, decode));
  out.encode_seconds = encoded.cpu_seconds;
  out.encode_wall_seconds = encoded.wall_seconds;
  out.decode_seconds = decoded.cpu_seconds;
  out.decode_wall_seconds = decoded.wall_seconds;
  // Stages apart, since listening costs time.
  stage_times = &out.encode_stages;
  absl::Status status = Pass(work, 0, encode());
  stage_times = &out.decode_stages;
  if (status.ok()) status = Pass(work, 0, decode());
  stage_times = nullptr;
  if (!status.ok()) return status;
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
                       {"encode_all_mb_per_s", MbPerS(work, r.encode_wall_seconds)},
                       {"decode_all_mb_per_s", MbPerS(work, r.decode_wall_seconds)},
                       {"bits_per_element", 8.0 * static_cast<double>(r.frame_bytes) /
                                                static_cast<double>(work.elements())},
                       {"quality", QualityJson(r.quality)},
                       {"encode_seconds", r.encode_seconds},
                       {"decode_seconds", r.decode_seconds},
                       {"encode_stage_seconds", StagesJson(r.encode_stages, r.encode_seconds)},
                       {"decode_stage_seconds", StagesJson(r.decode_stages, r.decode_seconds)}});
  }
  PrintJson({{"backend", CodecBackendName(work.backend)},
             {"threads", work.threads},
             {"input", work.cache ? work.cache->reader.path() : "synthetic"},
             {"layout", LayoutJson(work.layout)},
             {"tokens", work.tokens},
             {"chunk_tokens", work.chunk_tokens},
             {"presets", std::move(presets)}});
}

// "7.2 (90 %)": times the work of one thread, and of what `threads` would do at best.
std::string ScalingText(double scaling, size_t threads) {
  return absl::StrCat(Fixed(scaling, 2), " (",
                      Fixed(100 * scaling / static_cast<double>(threads), 0), " %)");
}

// How many times the work of one thread all of them do, beside what arithmetic in registers does.
void PrintScaling(const Workload& work, const std::vector<PresetResult>& results) {
  const double control = ControlScaling(work.threads, 1.0);
  std::vector<std::vector<std::string>> rows = {
      {absl::StrCat(work.threads, " THREADS OF ONE"), "ENCODE", "DECODE", "REGISTERS ALONE"}};
  for (const PresetResult& r : results) {
    rows.push_back({std::string(PresetName(r.preset)),
                    ScalingText(r.encode_single_seconds / r.encode_wall_seconds, work.threads),
                    ScalingText(r.decode_single_seconds / r.decode_wall_seconds, work.threads),
                    ScalingText(control, work.threads)});
  }
  std::cout << "\n";
  PrintTable(rows);
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
               {"backend", std::string(CodecBackendName(work.backend))},
               {"threads", absl::StrCat(work.threads)},
               {"MB/s", "of fp16 input; a core: by CPU time; all: by the clock, all threads"}});
  std::vector<std::vector<std::string>> rows = {
      {"PRESET", "ENCODE a core", "DECODE a core", "ENCODE all", "DECODE all", "BITS", "QUALITY"}};
  for (const PresetResult& r : results) {
    rows.push_back(
        {std::string(PresetName(r.preset)), Fixed(MbPerS(work, r.encode_seconds), 1),
         Fixed(MbPerS(work, r.decode_seconds), 1), Fixed(MbPerS(work, r.encode_wall_seconds), 1),
         Fixed(MbPerS(work, r.decode_wall_seconds), 1),
         Fixed(8.0 * static_cast<double>(r.frame_bytes) / static_cast<double>(work.elements()), 3),
         QualityText(r.quality)});
  }
  std::cout << "\n";
  PrintTable(rows);
  if (work.threads > 1) PrintScaling(work, results);
  std::cout << "\n";
  PrintStages("ENCODE, ns/element", work, results, true);
  std::cout << "\n";
  PrintStages("DECODE, ns/element", work, results, false);
}

absl::Status BenchCodec(const Arguments& arguments) {
  if (arguments.Get("backend") == "cuda") return BenchCodecOnGpu(arguments, MakeSyntheticModel);
  LKV_ASSIGN_OR_RETURN(const CodecBackend backend, ReadBackend(arguments));
  LKV_ASSIGN_OR_RETURN(const StatsMode stats, ReadStats(arguments, "auto"));
  const bool has_profile = arguments.Has("profile") || !arguments.Has("input");
  if (stats == StatsMode::kProfile && !has_profile) {
    return UsageError("--stats profile needs --profile");
  }
  LKV_ASSIGN_OR_RETURN(const uint64_t threads,
                       arguments.GetNumber("threads", 1, 1, kMaxBenchThreads));
  LKV_ASSIGN_OR_RETURN(const std::vector<PresetId> presets, ReadPresets(arguments));
  LKV_ASSIGN_OR_RETURN(const uint64_t seconds,
                       arguments.GetNumber("seconds", 1, 0, kMaxBenchSeconds));
  LKV_ASSIGN_OR_RETURN(Workload work, MakeWorkload(arguments));
  work.stats = stats;
  work.backend = backend;
  work.threads = threads;
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
           "Measure encoding and decoding a core, in CPU time, stage by stage, or on a GPU.",
           {{"presets", "A,B", "presets to measure (default: all)"},
            {"input", "IN.safetensors", "measure on this cache instead of a made-up one"},
            ProfileFlag("model profile for --input"),
            LayersFlag(),
            HeadsFlag(),
            HeadDimFlag(),
            {"tokens", "N", "tokens (default 1024)"},
            {"chunk", "N", "tokens per chunk, 16 to 256 (default 256)"},
            {"seconds", "N", "time for each preset and direction (default 1)"},
            {"stats", "own|profile|auto", "channel statistics (default auto; with cuda profile)"},
            {"threads", "N", "threads at once (default 1)"},
            {"runs", "N", "round trips and restores with --backend cuda (default 6)"},
            {"backend", "NAME",
             "auto, scalar, avx2, avx512, or cuda: the GPU beside plain copies (default auto)"},
            JsonFlag()}},
          BenchCodec};
}

}  // namespace latticekv
