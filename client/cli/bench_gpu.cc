#include "client/cli/bench_gpu.h"

#include <algorithm>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/codec_flags.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "client/cli/synthetic_cache.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/codec/gpu/gpu_bench.h"

namespace latticekv {
namespace {

// Llama-3.1-8B's, if nothing else is asked for.
constexpr uint64_t kLayers = 32;
constexpr uint64_t kHeads = 8;
constexpr double kRopeBase = 500000.0;
constexpr uint32_t kChunkTokens = limits::kMaxChunkTokens;
constexpr size_t kDistinctChunks = 2;
constexpr uint64_t kMaxTokens = 1 << 20;
constexpr uint64_t kMaxRuns = 1000;
constexpr uint64_t kRoundTripTokens = 32768;
constexpr uint64_t kRestoreTokens = 100096;  // 100K in whole chunks

struct Plan {
  std::vector<PresetId> presets;
  StatsMode stats = StatsMode::kProfile;
  std::vector<uint32_t> head_dims = {128, 64};
  std::vector<uint64_t> tokens = {4096, 16384};
  uint32_t layers = 0, heads = 0;
  int runs = 0;
};

struct Row {
  uint32_t head_dim;
  PresetId preset;
  uint64_t tokens;
  GpuCodecTimes times;
  double gb_s(double ms) const { return static_cast<double>(times.raw_bytes) / 1e6 / ms; }
  double bits() const {
    return 16.0 * static_cast<double>(times.frame_bytes) / static_cast<double>(times.raw_bytes);
  }
};

struct Report {
  std::string device;
  GpuCopySpeeds copies;
  std::vector<Row> rows;
  // Of one preset and head dim.
  PresetId preset = kDefaultPreset;
  uint32_t head_dim = 0;
  GpuBenchPaces paces;
  GpuRoundTrips round_trips;
  uint64_t restore_raw_bytes = 0;
  std::vector<double> restores_ms;
};

GpuBenchCase CaseOf(const GpuBenchModel& model, PresetId preset, StatsMode stats) {
  return {&model.layout, &model.profile, preset, stats, model.chunks};
}

absl::StatusOr<std::vector<PresetId>> ReadGpuPresets(const Arguments& arguments) {
  LKV_ASSIGN_OR_RETURN(std::vector<PresetId> presets, ReadPresets(arguments));
  const auto on_host = [](PresetId id) { return id == PresetId::kExact || id == PresetId::kSeed; };
  if (!arguments.Has("presets")) {
    presets.erase(std::remove_if(presets.begin(), presets.end(), on_host), presets.end());
  } else if (std::any_of(presets.begin(), presets.end(), on_host)) {
    return UsageError(
        "--backend cuda measures the presets near to tiny; exact and seed are coded "
        "by the host's zstd");
  }
  return presets;
}

absl::StatusOr<Plan> ReadPlan(const Arguments& arguments) {
  for (const char* flag : {"input", "profile", "chunk", "seconds", "threads"}) {
    if (arguments.Has(flag)) {
      return UsageError(absl::StrCat("--", flag,
                                     " does not go with --backend cuda, which measures "
                                     "a made-up cache in chunks of ",
                                     kChunkTokens, " tokens"));
    }
  }
  Plan out;
  LKV_ASSIGN_OR_RETURN(out.presets, ReadGpuPresets(arguments));
  LKV_ASSIGN_OR_RETURN(out.stats, ReadStats(arguments, "profile"));
  LKV_ASSIGN_OR_RETURN(const uint64_t layers,
                       arguments.GetNumber("layers", kLayers, 1, limits::kMaxLayers));
  LKV_ASSIGN_OR_RETURN(const uint64_t heads,
                       arguments.GetNumber("heads", kHeads, 1, limits::kMaxHeads));
  LKV_ASSIGN_OR_RETURN(const uint64_t head_dim,
                       arguments.GetNumber("head-dim", 128, 8, limits::kMaxHeadDim));
  LKV_ASSIGN_OR_RETURN(const uint64_t tokens,
                       arguments.GetNumber("tokens", kChunkTokens, kChunkTokens, kMaxTokens));
  LKV_ASSIGN_OR_RETURN(const uint64_t runs, arguments.GetNumber("runs", 6, 0, kMaxRuns));
  out.layers = static_cast<uint32_t>(layers);
  out.heads = static_cast<uint32_t>(heads);
  out.runs = static_cast<int>(runs);
  if (arguments.Has("head-dim")) out.head_dims = {static_cast<uint32_t>(head_dim)};
  if (arguments.Has("tokens")) out.tokens = {tokens};
  return out;
}

absl::StatusOr<Layout> MakeLayout(const Plan& plan, uint32_t head_dim) {
  Layout out = MakeUniformLayout("synthetic", plan.layers, plan.heads, head_dim, DType::kF16,
                                 {RopeStyle::kNeox, head_dim, kRopeBase, {}});
  if (const absl::Status valid = ValidateLayout(out); !valid.ok()) {
    return UsageError(std::string(valid.message()));
  }
  return out;
}

absl::Status MeasurePasses(const Plan& plan, const GpuBenchModel& model, GpuBench& bench,
                           Report& report) {
  const bool balanced = std::count(plan.presets.begin(), plan.presets.end(), PresetId::kBalanced);
  report.preset = balanced ? PresetId::kBalanced : plan.presets.front();
  report.head_dim = plan.head_dims.front();
  report.paces = bench.DefaultPaces();
  report.restore_raw_bytes = kRestoreTokens * model.layout.token_bytes();
  const GpuBenchCase what = CaseOf(model, report.preset, plan.stats);
  LKV_ASSIGN_OR_RETURN(report.round_trips,
                       bench.RoundTrips(what, kRoundTripTokens, report.paces, plan.runs));
  LKV_ASSIGN_OR_RETURN(report.restores_ms,
                       bench.Restores(what, kRestoreTokens, report.paces.restore, plan.runs));
  return absl::OkStatus();
}

absl::StatusOr<Report> Measure(const Plan& plan, const MakeGpuBenchModel& make, GpuBench& bench) {
  Report report;
  report.device = bench.Description();
  LKV_ASSIGN_OR_RETURN(report.copies, bench.Copies());
  Progress progress("measuring case",
                    plan.head_dims.size() * plan.presets.size() * plan.tokens.size());
  for (const uint32_t head_dim : plan.head_dims) {
    LKV_ASSIGN_OR_RETURN(const Layout layout, MakeLayout(plan, head_dim));
    const GpuBenchModel model = make(layout);
    for (const PresetId preset : plan.presets) {
      for (const uint64_t tokens : plan.tokens) {
        LKV_ASSIGN_OR_RETURN(const GpuCodecTimes times,
                             bench.Codec(CaseOf(model, preset, plan.stats), tokens));
        report.rows.push_back({head_dim, preset, tokens / kChunkTokens * kChunkTokens, times});
        progress.Add();
      }
    }
    if (head_dim != plan.head_dims.front() || plan.runs == 0) continue;
    LKV_RETURN_IF_ERROR(MeasurePasses(plan, model, bench, report));
  }
  return report;
}

std::string TimesText(const GpuLaneTimes& t) {
  return absl::StrCat("plan ", Fixed(t.plan, 2), ", enqueue ", Fixed(t.enqueue, 2), ", kernels ",
                      Fixed(t.wait_kernels, 2), ", collect ", Fixed(t.collect, 2), ", copies ",
                      Fixed(t.wait_copies, 2));
}

std::string PaceText(const GpuBenchPace& pace) {
  return absl::StrCat(pace.lanes, " threads, batches of ", pace.batch_chunks, " chunks");
}

void PrintPasses(const Report& r) {
  std::cout << "\n";
  PrintFields(
      {{"round trip", absl::StrCat(kRoundTripTokens, " tokens, ",
                                   Fixed(static_cast<double>(r.round_trips.raw_bytes) / 1e9, 2),
                                   " GB, ", std::string(PresetName(r.preset)), ", head dim ",
                                   r.head_dim, ": device to frames in host memory and back")},
       {"plain copies", absl::StrCat(Fixed(r.round_trips.raw_down_ms, 1), " ms down, ",
                                     Fixed(r.round_trips.raw_up_ms, 1),
                                     " ms up, the fastest of "
                                     "several")},
       {"offload", PaceText(r.paces.offload)},
       {"restore", PaceText(r.paces.restore)}});
  std::vector<std::vector<std::string>> rows = {
      {"RUN", "OFFLOAD ms", "RESTORE ms", "BOTH", "TIMES FASTER"}};
  double least = 0;
  for (const GpuRoundTrip& t : r.round_trips.passes) {
    const double factor = r.round_trips.Factor(t);
    least = rows.size() == 1 ? factor : std::min(least, factor);
    rows.push_back({absl::StrCat(rows.size()), Fixed(t.offload_ms, 1), Fixed(t.restore_ms, 1),
                    Fixed(t.ms(), 1), Fixed(factor, 2)});
  }
  PrintTable(rows);
  const GpuRoundTrip& last = r.round_trips.passes.back();
  PrintFields({{"slowest run", Fixed(least, 2) + " times faster"},
               {"offload, ms a thread", TimesText(last.offload_times)},
               {"restore, ms a thread", TimesText(last.restore_times)}});
  std::string restores;
  for (const double ms : r.restores_ms) {
    absl::StrAppend(&restores, restores.empty() ? "" : ", ", Fixed(ms, 1));
  }
  std::cout << "\n";
  PrintFields({{"restore to paged memory",
                absl::StrCat(kRestoreTokens, " tokens, ",
                             Fixed(static_cast<double>(r.restore_raw_bytes) / 1e9, 2), " GB")},
               {"ms, each run", restores}});
}

void PrintText(const Plan& plan, const Report& r) {
  PrintFields({{"device", r.device},
               {"cache", absl::StrCat("made up: ", plan.layers, " layers, ", plan.heads,
                                      " KV heads, f16, chunks of ", kChunkTokens, " tokens")},
               {"copy on the device", Fixed(r.copies.device, 0) + " GB/s, read and written"},
               {"host to device", Fixed(r.copies.up, 1) + " GB/s"},
               {"device to host", Fixed(r.copies.down, 1) + " GB/s"},
               {"GB/s", "of fp16 input, frames and bytes checked against the CPU codec's"}});
  std::vector<std::vector<std::string>> rows = {{"HEAD DIM", "PRESET", "TOKENS", "BITS",
                                                 "ENCODE kernels", "ENCODE all", "DECODE kernels",
                                                 "DECODE all"}};
  for (const Row& row : r.rows) {
    rows.push_back(
        {absl::StrCat(row.head_dim), std::string(PresetName(row.preset)), absl::StrCat(row.tokens),
         Fixed(row.bits(), 3), Fixed(row.gb_s(row.times.encode_kernels_ms), 0),
         Fixed(row.gb_s(row.times.encode_ms), 0), Fixed(row.gb_s(row.times.decode_kernels_ms), 0),
         Fixed(row.gb_s(row.times.decode_ms), 0)});
  }
  std::cout << "\n";
  PrintTable(rows);
  if (!r.round_trips.passes.empty()) PrintPasses(r);
}

Json TimesJson(const GpuLaneTimes& t) {
  return {{"plan_ms", t.plan},
          {"enqueue_ms", t.enqueue},
          {"wait_kernels_ms", t.wait_kernels},
          {"collect_ms", t.collect},
          {"wait_copies_ms", t.wait_copies}};
}

void PrintReportJson(const Plan& plan, const Report& r) {
  Json rows = Json::array(), trips = Json::array();
  for (const Row& row : r.rows) {
    rows.push_back({{"head_dim", row.head_dim},
                    {"preset", std::string(PresetName(row.preset))},
                    {"tokens", row.tokens},
                    {"bits", row.bits()},
                    {"encode_kernels_gb_per_s", row.gb_s(row.times.encode_kernels_ms)},
                    {"encode_gb_per_s", row.gb_s(row.times.encode_ms)},
                    {"decode_kernels_gb_per_s", row.gb_s(row.times.decode_kernels_ms)},
                    {"decode_gb_per_s", row.gb_s(row.times.decode_ms)}});
  }
  for (const GpuRoundTrip& t : r.round_trips.passes) {
    trips.push_back({{"offload_ms", t.offload_ms},
                     {"restore_ms", t.restore_ms},
                     {"factor", r.round_trips.Factor(t)},
                     {"offload_thread", TimesJson(t.offload_times)},
                     {"restore_thread", TimesJson(t.restore_times)}});
  }
  PrintJson({{"device", r.device},
             {"layers", plan.layers},
             {"heads", plan.heads},
             {"copies_gb_per_s",
              {{"device", r.copies.device},
               {"host_to_device", r.copies.up},
               {"device_to_host", r.copies.down}}},
             {"codec", rows},
             {"raw_down_ms", r.round_trips.raw_down_ms},
             {"raw_up_ms", r.round_trips.raw_up_ms},
             {"round_trips", trips},
             {"restores_ms", r.restores_ms}});
}

}  // namespace

GpuBenchModel MakeSyntheticModel(const Layout& layout) {
  GpuBenchModel out{layout, MakeSyntheticProfile(layout), {}};
  for (size_t i = 0; i < kDistinctChunks; ++i) {
    out.chunks.push_back(MakeSyntheticChunk(layout, i * kChunkTokens, kChunkTokens));
  }
  return out;
}

absl::Status BenchCodecOnGpu(const Arguments& arguments, const MakeGpuBenchModel& make) {
  LKV_ASSIGN_OR_RETURN(const Plan plan, ReadPlan(arguments));
  LKV_ASSIGN_OR_RETURN(const std::unique_ptr<GpuBench> bench, OpenCudaBench());
  LKV_ASSIGN_OR_RETURN(const Report report, Measure(plan, make, *bench));
  if (arguments.Has("json")) {
    PrintReportJson(plan, report);
  } else {
    PrintText(plan, report);
  }
  return absl::OkStatus();
}

}  // namespace latticekv
