// latticekv bench service: puts and gets through the service, beside the same bytes over plain gRPC
// and through Redis.
#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/cli/command.h"
#include "client/cli/disk_bench.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "client/cli/service_bench.h"
#include "client/cli/synthetic_cache.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"

namespace latticekv {
namespace {

constexpr uint64_t kMaxBenchWorkers = 1024;
constexpr double kMinBenchSeconds = 0.1, kMaxBenchSeconds = 3600;
constexpr uint64_t kMaxBenchTokens = 65536;

// The comma-separated words of a flag, each one of `allowed`.
absl::StatusOr<std::vector<std::string>> ReadWords(const Arguments& arguments,
                                                   const std::string& flag,
                                                   const std::string& otherwise,
                                                   const std::vector<std::string>& allowed) {
  std::vector<std::string> out;
  for (absl::string_view part : absl::StrSplit(arguments.Get(flag, otherwise), ',')) {
    std::string word(part);
    if (std::find(allowed.begin(), allowed.end(), word) == allowed.end()) {
      return UsageError(absl::StrCat("--", flag, " does not know '", word, "'"));
    }
    out.push_back(std::move(word));
  }
  return out;
}

absl::StatusOr<std::vector<uint32_t>> ReadNumbers(const Arguments& arguments,
                                                  const std::string& flag,
                                                  const std::string& otherwise, uint64_t low,
                                                  uint64_t high) {
  std::vector<uint32_t> out;
  for (absl::string_view part : absl::StrSplit(arguments.Get(flag, otherwise), ',')) {
    uint64_t number = 0;
    if (!absl::SimpleAtoi(part, &number) || number < low || number > high) {
      return UsageError(absl::StrCat("--", flag, " takes numbers from ", low, " to ", high,
                                     ", not '", part, "'"));
    }
    out.push_back(static_cast<uint32_t>(number));
  }
  return out;
}

absl::StatusOr<BenchSettings> ReadSettings(const Arguments& arguments) {
  LKV_ASSIGN_OR_RETURN(
      const uint64_t tokens,
      arguments.GetNumber("tokens", 512, limits::kMinChunkTokens, kMaxBenchTokens));
  LKV_ASSIGN_OR_RETURN(const uint64_t memory_mb,
                       arguments.GetNumber("memory-mb", 2048, 64, 1 << 20));
  BenchSettings out;
  LKV_ASSIGN_OR_RETURN(out.layout, ReadSyntheticLayout(arguments, "bench"));
  out.tokens = static_cast<uint32_t>(tokens);
  if (!absl::SimpleAtod(arguments.Get("seconds", "2"), &out.seconds) ||
      !(out.seconds >= kMinBenchSeconds && out.seconds <= kMaxBenchSeconds)) {
    return UsageError(absl::StrCat("--seconds takes ", kMinBenchSeconds, " to ", kMaxBenchSeconds));
  }
  out.memory_bytes = memory_mb << 20;
  LKV_ASSIGN_OR_RETURN(const auto data,
                       ReadWords(arguments, "data", "synthetic", {"synthetic", "random"}));
  out.random_bytes = data.front() == "random";
  return out;
}

// Every combination that was asked for, in the order of the table: what is compared stands
// together.
absl::StatusOr<std::vector<BenchCase>> ReadCases(const Arguments& arguments) {
  LKV_ASSIGN_OR_RETURN(const auto transports,
                       ReadWords(arguments, "transports", "shm,unix,tcp", {"shm", "unix", "tcp"}));
  LKV_ASSIGN_OR_RETURN(const auto directions,
                       ReadWords(arguments, "directions", "put,get", {"put", "get"}));
  LKV_ASSIGN_OR_RETURN(const auto systems, ReadWords(arguments, "systems", "latticekv,echo,redis",
                                                     {"latticekv", "echo", "redis"}));
  LKV_ASSIGN_OR_RETURN(const auto wires, ReadWords(arguments, "wire", "raw", {"raw", "frames"}));
  LKV_ASSIGN_OR_RETURN(const auto workers,
                       ReadNumbers(arguments, "workers", "1,4,16,64", 1, kMaxBenchWorkers));
  LKV_ASSIGN_OR_RETURN(
      const auto chunks,
      ReadNumbers(arguments, "chunks", "256,16", limits::kMinChunkTokens, limits::kMaxChunkTokens));
  std::vector<PresetId> presets;
  for (absl::string_view name : absl::StrSplit(arguments.Get("presets", "exact,balanced"), ',')) {
    const auto preset = ParsePreset(std::string(name));
    if (!preset.ok()) return UsageError(std::string(preset.status().message()));
    presets.push_back(*preset);
  }
  std::vector<BenchCase> out;
  for (const std::string& direction : directions) {
    for (const uint32_t chunk : chunks) {
      for (const uint32_t count : workers) {
        for (const std::string& transport : transports) {
          for (const std::string& system : systems) {
            if (system != "latticekv") {
              if (transport == "shm") continue;
              out.push_back({system, transport, direction, "", PresetId::kExact, chunk, count});
              continue;
            }
            for (const std::string& wire : wires) {
              for (const PresetId preset : presets) {
                out.push_back({system, transport, direction, wire, preset, chunk, count});
              }
            }
          }
        }
      }
    }
  }
  return out;
}

Json RowJson(const BenchRow& row) {
  Json json = {{"system", row.what.system},
               {"transport", row.what.transport},
               {"direction", row.what.direction},
               {"chunk_tokens", row.what.chunk_tokens},
               {"workers", row.what.workers}};
  if (row.what.system == "latticekv") {
    json["wire"] = row.what.wire;
    json["preset"] = PresetName(row.what.preset);
  }
  if (!row.note.empty()) {
    json["note"] = row.note;
    return json;
  }
  json["operations"] = row.operations;
  json["operation_bytes"] = row.operation_bytes;
  json["seconds"] = row.seconds;
  json["mb_per_s"] = row.mb_per_s();
  json["p50_ms"] = row.p50_ms;
  json["p99_ms"] = row.p99_ms;
  if (row.cpu_seconds > 0) {
    json["cpu_seconds"] = row.cpu_seconds;
    json["codec_cpu_seconds"] = row.codec_cpu_seconds;
    if (row.what.wire != "frames") json["transport_mb_per_cpu_s"] = row.transport_mb_per_cpu_s();
  }
  return json;
}

std::vector<std::string> Heading() {
  return {"DIRECTION",
          "CHUNK",
          "WORKERS",
          "TRANSPORT",
          "SYSTEM",
          "WIRE",
          "PRESET",
          "MB/s",
          "p50 ms",
          "p99 ms",
          "CPU s/GB",
          "CODEC s/GB",
          "TRANSPORT MB/CPU s"};
}

// The widest texts of a table of these cases.
std::vector<std::string> Widest(const std::vector<BenchCase>& cases) {
  const std::string number(7, '0');
  std::vector<std::string> out(Heading().size(), number);
  const auto widen = [](std::string& column, const std::string& text) {
    if (text.size() > column.size()) column = text;
  };
  for (size_t c = 0; c < 7; ++c) out[c].clear();
  for (const BenchCase& one : cases) {
    widen(out[4], one.system);
    widen(out[5], one.wire);
    if (!one.wire.empty()) widen(out[6], std::string(PresetName(one.preset)));
  }
  return out;
}

// Of the whole table: measuring, and what comes before each row, which takes about half as long.
int64_t ExpectedMs(size_t rows, const ServiceBench& bench) {
  return static_cast<int64_t>(static_cast<double>(rows) * bench.settings().seconds * 1500);
}

std::vector<std::string> RowText(const BenchRow& row) {
  std::vector<std::string> out = {
      row.what.direction,
      absl::StrCat(row.what.chunk_tokens),
      absl::StrCat(row.what.workers),
      row.what.transport,
      row.what.system,
      row.what.wire.empty() ? "-" : row.what.wire,
      row.what.wire.empty() ? "-" : std::string(PresetName(row.what.preset))};
  if (!row.note.empty()) {
    out.insert(out.end(), {row.note, "", "", "", "", ""});
    return out;
  }
  const double gb = row.bytes() / 1e9;
  const bool cpu = row.cpu_seconds > 0 && gb > 0;
  out.insert(
      out.end(),
      {Fixed(row.mb_per_s(), 1), Fixed(row.p50_ms, 2), Fixed(row.p99_ms, 2),
       cpu ? Fixed(row.cpu_seconds / gb, 3) : "-", cpu ? Fixed(row.codec_cpu_seconds / gb, 3) : "-",
       // The worker's own codec is not told apart.
       cpu && row.what.wire != "frames" ? Fixed(row.transport_mb_per_cpu_s(), 0) : "-"});
  return out;
}

absl::Status BenchDisk(const Arguments& arguments) {
  DiskBenchSettings settings;
  settings.directory = arguments.Get("disk");
  LKV_ASSIGN_OR_RETURN(const uint64_t mb, arguments.GetNumber("disk-mb", 2048, 64, 1 << 22));
  settings.bytes = mb << 20;
  LKV_ASSIGN_OR_RETURN(const uint64_t rounds, arguments.GetNumber("rounds", 3, 1, 100));
  settings.rounds = static_cast<uint32_t>(rounds);
  LKV_ASSIGN_OR_RETURN(settings.workers, ReadNumbers(arguments, "workers", "1,4", 1, 64));
  LKV_ASSIGN_OR_RETURN(const std::vector<DiskBenchRow> rows, RunDiskBench(settings));
  Json list = Json::array();
  std::vector<std::vector<std::string>> table = {
      {"ROUND", "WHAT", "MB/s", "CPU s/GB", "FROM DISK", "OF RAW BESIDE IT", "OF THE FASTEST RAW"}};
  const auto percent = [](double share) { return absl::StrCat(Fixed(share * 100, 0), " %"); };
  for (const DiskBenchRow& row : rows) {
    list.push_back({{"round", row.round},
                    {"what", row.what},
                    {"mb_per_s", row.mb_per_s},
                    {"cpu_s_per_gb", row.cpu_s_per_gb},
                    {"read_share", row.read_share},
                    {"share_of_raw", row.share_of_raw},
                    {"share_of_fastest", row.share_of_fastest}});
    table.push_back({absl::StrCat(row.round), row.what, Fixed(row.mb_per_s, 0),
                     Fixed(row.cpu_s_per_gb, 3), row.raw ? "" : percent(row.read_share),
                     row.raw ? "" : percent(row.share_of_raw), percent(row.share_of_fastest)});
  }
  if (arguments.Has("json")) {
    PrintJson({{"record_bytes", 1 << 20}, {"bytes", settings.bytes}, {"rows", std::move(list)}});
  } else {
    PrintTable(table);
  }
  return absl::OkStatus();
}

// The row that differs from `row` in system and transport alone; null when it was not measured.
const BenchRow* Counterpart(const std::vector<BenchRow>& rows, const BenchRow& row,
                            const std::string& system, const std::string& transport) {
  for (const BenchRow& other : rows) {
    const bool same_way = other.what.direction == row.what.direction &&
                          other.what.chunk_tokens == row.what.chunk_tokens &&
                          other.what.workers == row.what.workers;
    const bool same_coding = system != "latticekv" || (other.what.wire == row.what.wire &&
                                                       other.what.preset == row.what.preset);
    if (same_way && same_coding && other.what.system == system &&
        other.what.transport == transport && other.note.empty()) {
      return &other;
    }
  }
  return nullptr;
}

// Raw bytes over a socket against plain gRPC over the same, and shared memory against the socket:
// by what a core moves with the codec's time taken off, and by throughput with it.
std::vector<std::vector<std::string>> Ratios(const std::vector<BenchRow>& rows) {
  std::vector<std::vector<std::string>> table = {
      {"DIRECTION", "CHUNK", "WORKERS", "PRESET", "COMPARED", "MB/CPU s", "MB/s"}};
  const auto add = [&](const BenchRow& row, const BenchRow* base, const std::string& name) {
    if (base == nullptr || !row.note.empty() || base->transport_mb_per_cpu_s() <= 0) return;
    table.push_back({row.what.direction, absl::StrCat(row.what.chunk_tokens),
                     absl::StrCat(row.what.workers), std::string(PresetName(row.what.preset)), name,
                     Fixed(row.transport_mb_per_cpu_s() / base->transport_mb_per_cpu_s(), 2),
                     Fixed(row.mb_per_s() / base->mb_per_s(), 2)});
  };
  for (const BenchRow& row : rows) {
    const std::string& transport = row.what.transport;
    if (row.what.system != "latticekv" || row.what.wire != "raw") continue;
    if (transport == "shm") {
      add(row, Counterpart(rows, row, "latticekv", "unix"), "shm / unix");
    } else {
      add(row, Counterpart(rows, row, "echo", transport), absl::StrCat(transport, " / echo"));
    }
  }
  return table;
}

absl::Status BenchService(const Arguments& arguments) {
  if (arguments.Has("disk")) return BenchDisk(arguments);
  LKV_ASSIGN_OR_RETURN(BenchSettings settings, ReadSettings(arguments));
  LKV_ASSIGN_OR_RETURN(const std::vector<BenchCase> cases, ReadCases(arguments));
  LKV_ASSIGN_OR_RETURN(const auto bench,
                       ServiceBench::Create(std::move(settings), arguments.Get("server")));
  const bool json = arguments.Has("json");
  std::optional<TablePrinter> table;
  if (!json) {
    PrintFields({{"layout", LayoutText(bench->settings().layout)},
                 {"operation", absl::StrCat(bench->settings().tokens, " tokens, ",
                                            BytesText(bench->operation_bytes()), " raw")},
                 {"rows", absl::StrCat(cases.size(), ", about ",
                                       DurationText(ExpectedMs(cases.size(), *bench)))}});
    table.emplace(Heading(), Widest(cases));
  }
  std::vector<BenchRow> rows;
  {
    Progress progress("measuring row", cases.size());
    for (const BenchCase& one : cases) {
      LKV_ASSIGN_OR_RETURN(BenchRow row, bench->Run(one));
      if (table) table->Row(RowText(row));
      rows.push_back(std::move(row));
      progress.Add();
    }
  }
  if (json) {
    Json list = Json::array();
    for (const BenchRow& row : rows) list.push_back(RowJson(row));
    PrintJson({{"layout", LayoutJson(bench->settings().layout)},
               {"tokens", bench->settings().tokens},
               {"data", bench->settings().random_bytes ? "random" : "synthetic"},
               {"rows", std::move(list)}});
    return absl::OkStatus();
  }
  if (const auto ratios = Ratios(rows); ratios.size() > 1) PrintTable(ratios);
  return absl::OkStatus();
}

}  // namespace

Command BenchServiceCommand() {
  return {{"bench service",
           "",
           0,
           0,
           "Measure puts and gets, beside plain gRPC and Redis moving the same bytes.",
           {{"server", "ADDR", "measure this daemon (default: one that the command starts)"},
            {"workers", "N,N", "concurrent workers, each with its own connection (1,4,16,64)"},
            {"chunks", "N,N", "tokens per chunk, 16 to 256 (default 256,16)"},
            {"transports", "A,B", "shm, unix, tcp (default all)"},
            {"directions", "A,B", "put, get (default both)"},
            {"systems", "A,B", "latticekv, echo, redis (default all)"},
            {"wire", "A,B", "raw, frames: the worker compresses and decompresses (default raw)"},
            {"presets", "A,B", "presets to put with (default exact,balanced)"},
            {"data", "A", "synthetic: like a real cache; random: incompressible bytes"},
            LayersFlag(),
            HeadsFlag(),
            HeadDimFlag(),
            {"tokens", "N", "tokens of one put or get (default 512)"},
            {"memory-mb", "N", "memory of the daemon and of Redis (default 2048)"},
            {"seconds", "N", "time for each row (default 2)"},
            {"disk", "DIR", "measure the disk tier in DIR instead, beside raw reads of 1 MiB"},
            {"disk-mb", "N", "blocks to read back from it (default 2048)"},
            {"rounds", "N", "of the disk's rows (default 3)"},
            JsonFlag()}},
          BenchService};
}

}  // namespace latticekv
