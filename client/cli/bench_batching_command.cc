// latticekv bench batching: an engine's small blocks, one call each and through BatchingWriter.
#include <chrono>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "client/cli/output.h"
#include "client/cli/service_bench.h"
#include "client/cli/synthetic_cache.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "latticekv/batching_writer.h"

namespace latticekv {
namespace {

constexpr uint64_t kMaxSequences = 4096;
constexpr uint64_t kMaxTokens = 65536;
constexpr int64_t kNeverMs = 3'600'000;

struct Settings {
  Layout layout;
  uint32_t sequences = 0, tokens = 0, block = 0;
  PresetId preset = PresetId::kBalanced;
};

struct Row {
  std::string name;
  uint64_t blocks = 0;
  double seconds = 0, cpu_seconds = 0;
  double blocks_per_s() const { return static_cast<double>(blocks) / seconds; }
  double cpu_us_per_block() const { return cpu_seconds * 1e6 / static_cast<double>(blocks); }
};

// What the engine has: the planes of one sequence, from `first` on.
class Engine {
 public:
  explicit Engine(const Settings& settings)
      : settings_(settings), raw_(MakeSyntheticChunk(settings.layout, 0, settings.tokens)) {}
  std::vector<uint32_t> Ids(uint32_t run, uint32_t sequence) const {
    std::vector<uint32_t> out(settings_.tokens, 3);
    out[0] = run;
    out[1] = sequence;
    return out;
  }
  std::vector<std::vector<PlaneView>> Views(uint32_t first) const {
    std::vector<std::vector<PlaneView>> out;
    const std::byte* at = raw_.data();
    for (const LayerSpec& layer : settings_.layout.layers) {
      auto& planes = out.emplace_back();
      for (const PlaneSpec& plane : layer.planes) {
        planes.push_back(ContiguousPlane(plane, at + first * plane.token_bytes()));
        at += plane.token_bytes() * settings_.tokens;
      }
    }
    return out;
  }

 private:
  const Settings& settings_;
  const ByteVector raw_;
};

// One PutPrefix for each block: of the chunk that it ends so far.
absl::Status PutOneByOne(Client& client, const Settings& settings, const Engine& engine,
                         const RegisteredLayout& layout, uint32_t run) {
  for (uint32_t s = 0; s < settings.sequences; ++s) {
    const std::vector<uint32_t> ids = engine.Ids(run, s);
    for (uint32_t end = settings.block; end <= settings.tokens; end += settings.block) {
      PutRequest request;
      request.layout = layout;
      request.tokens = std::span(ids).subspan(0, end);
      request.start = (end - 1) / layout.chunk_tokens * layout.chunk_tokens;
      request.planes = engine.Views(static_cast<uint32_t>(request.start));
      request.preset = settings.preset;
      LKV_ASSIGN_OR_RETURN(const PutResult result, client.PutPrefix(request));
      LKV_RETURN_IF_ERROR(result.status());
    }
  }
  return absl::OkStatus();
}

absl::Status PutBatched(Client& client, const Settings& settings, const Engine& engine,
                        const RegisteredLayout& layout, uint32_t run) {
  BatchTarget target;
  target.layout = layout;
  target.preset = settings.preset;
  BatchingWriter writer(client, target, {.max_delay_ms = kNeverMs});
  std::vector<std::future<absl::Status>> futures;
  for (uint32_t s = 0; s < settings.sequences; ++s) {
    const std::vector<uint32_t> ids = engine.Ids(run, s);
    for (uint32_t at = 0; at < settings.tokens; at += settings.block) {
      futures.push_back(
          writer.Append(s, std::span(ids).subspan(at, settings.block), engine.Views(at)));
    }
    writer.End(s);
  }
  for (auto& future : futures) LKV_RETURN_IF_ERROR(future.get());
  return absl::OkStatus();
}

template <typename Work>
absl::StatusOr<Row> Measure(const std::string& name, const Settings& settings,
                            const BenchDaemon& daemon, const Work& work) {
  Row row;
  row.name = name;
  row.blocks = uint64_t{settings.sequences} * (settings.tokens / settings.block);
  const double cpu = OwnCpuSeconds() + CpuSecondsOf(daemon.process->pid());
  const auto start = std::chrono::steady_clock::now();
  LKV_RETURN_IF_ERROR(work());
  row.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  row.cpu_seconds = OwnCpuSeconds() + CpuSecondsOf(daemon.process->pid()) - cpu;
  return row;
}

absl::StatusOr<Settings> ReadSettings(const Arguments& arguments) {
  LKV_ASSIGN_OR_RETURN(const uint64_t sequences,
                       arguments.GetNumber("sequences", 4, 1, kMaxSequences));
  LKV_ASSIGN_OR_RETURN(const uint64_t tokens,
                       arguments.GetNumber("tokens", 512, limits::kMinChunkTokens, kMaxTokens));
  LKV_ASSIGN_OR_RETURN(
      const uint64_t block,
      arguments.GetNumber("block", 16, limits::kMinChunkTokens, limits::kMaxChunkTokens));
  Settings out;
  LKV_ASSIGN_OR_RETURN(out.layout, ReadSyntheticLayout(arguments, "bench"));
  if (tokens % block != 0) return UsageError("--tokens must be a multiple of --block");
  out.sequences = static_cast<uint32_t>(sequences);
  out.tokens = static_cast<uint32_t>(tokens);
  out.block = static_cast<uint32_t>(block);
  const auto preset = ParsePreset(arguments.Get("preset", "balanced"));
  if (!preset.ok()) return UsageError(std::string(preset.status().message()));
  out.preset = *preset;
  return out;
}

absl::Status BenchBatching(const Arguments& arguments) {
  LKV_ASSIGN_OR_RETURN(const Settings settings, ReadSettings(arguments));
  const Engine engine(settings);
  LKV_ASSIGN_OR_RETURN(const auto folder, ScratchFolder::Make());
  LKV_ASSIGN_OR_RETURN(const BenchDaemon daemon, BenchDaemon::Start(*folder, size_t{2} << 30));
  LKV_ASSIGN_OR_RETURN(Client client, Connect(daemon.unix_address));
  std::vector<RegisteredLayout> layouts;
  for (const uint32_t chunk : {limits::kMaxChunkTokens, settings.block}) {
    LKV_ASSIGN_OR_RETURN(RegisteredLayout layout,
                         client.RegisterLayout({.name_space = absl::StrCat("chunk", chunk),
                                                .layout = settings.layout,
                                                .chunk_tokens = chunk}));
    layouts.push_back(std::move(layout));
  }
  std::vector<Row> rows;
  uint32_t run = 0;
  for (const RegisteredLayout& layout : layouts) {
    const std::string chunk = absl::StrCat("chunks of ", layout.chunk_tokens);
    LKV_ASSIGN_OR_RETURN(
        Row alone, Measure(absl::StrCat("one call each, ", chunk), settings, daemon,
                           [&] { return PutOneByOne(client, settings, engine, layout, ++run); }));
    LKV_ASSIGN_OR_RETURN(
        Row batched, Measure(absl::StrCat("batched, ", chunk), settings, daemon,
                             [&] { return PutBatched(client, settings, engine, layout, ++run); }));
    rows.push_back(std::move(alone));
    rows.push_back(std::move(batched));
  }
  if (arguments.Has("json")) {
    Json list = Json::array();
    for (const Row& row : rows) {
      list.push_back({{"name", row.name},
                      {"blocks", row.blocks},
                      {"seconds", row.seconds},
                      {"cpu_seconds", row.cpu_seconds},
                      {"blocks_per_s", row.blocks_per_s()},
                      {"cpu_us_per_block", row.cpu_us_per_block()}});
    }
    PrintJson({{"layout", LayoutJson(settings.layout)},
               {"block_tokens", settings.block},
               {"tokens", settings.tokens},
               {"preset", PresetName(settings.preset)},
               {"rows", std::move(list)}});
    return absl::OkStatus();
  }
  PrintFields({{"layout", LayoutText(settings.layout)},
               {"blocks", absl::StrCat(settings.block, " tokens, ",
                                       BytesText(settings.layout.token_bytes() * settings.block))},
               {"preset", std::string(PresetName(settings.preset))}});
  std::vector<std::vector<std::string>> table = {{"PUTS", "BLOCKS", "BLOCKS/s", "CPU us/BLOCK"}};
  for (const Row& row : rows) {
    table.push_back({row.name, absl::StrCat(row.blocks), Fixed(row.blocks_per_s(), 1),
                     Fixed(row.cpu_us_per_block(), 1)});
  }
  PrintTable(table);
  return absl::OkStatus();
}

}  // namespace

Command BenchBatchingCommand() {
  return {
      {"bench batching",
       "",
       0,
       0,
       "Measure an engine's small blocks, one call each and batched, against a daemon of its own.",
       {{"sequences", "N", "sequences (default 4)"},
        {"tokens", "N", "tokens of each (default 512)"},
        {"block", "N", "tokens of an engine's block (default 16)"},
        {"preset", "A", "preset to put with (default balanced)"},
        LayersFlag(),
        HeadsFlag(),
        HeadDimFlag(),
        JsonFlag()}},
      BenchBatching};
}

}  // namespace latticekv
