// latticekv compress: a cache in a safetensors file becomes a .lkv file.
#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "client/cli/codec_flags.h"
#include "client/cli/command.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "client/src/lkv_file.h"
#include "client/src/parallel_for.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/codec/attention_mass.h"

namespace latticekv {
namespace {

struct CompressResult {
  uint64_t file_bytes = 0;
  Quality quality;
  double seconds = 0;
};

absl::Status CheckFlags(const Arguments& arguments, StatsMode stats) {
  if (arguments.Has("profile")) return absl::OkStatus();
  if (arguments.Has("embed-profile")) return UsageError("--embed-profile needs --profile");
  if (stats == StatsMode::kProfile) return UsageError("--stats profile needs --profile");
  return absl::OkStatus();
}

absl::StatusOr<std::vector<ByteVector>> EncodeChunks(const CacheFile& cache, uint32_t chunk_tokens,
                                                     const EncodeOptions& options, bool importance,
                                                     const std::vector<uint8_t>& keep,
                                                     size_t threads) {
  const size_t chunks = (size_t{cache.tokens} + chunk_tokens - 1) / chunk_tokens;
  std::vector<ByteVector> frames(chunks);
  std::vector<float> mass_levels;
  if (importance) {
    LKV_ASSIGN_OR_RETURN(const AttentionMass mass, cache.Mass());
    mass_levels = MassLevels(mass, cache.layout.layers.size(), cache.tokens, 0, keep);
  }
  Progress progress("compressing chunk", chunks);
  LKV_RETURN_IF_ERROR(ParallelFor(chunks, threads, [&](size_t i) -> absl::Status {
    EncodeOptions chunk = options;
    chunk.start_position = uint64_t{i} * chunk_tokens;
    const auto tokens = static_cast<uint32_t>(
        std::min<uint64_t>(chunk_tokens, cache.tokens - chunk.start_position));
    if (!keep.empty()) {
      const auto first = keep.begin() + static_cast<std::ptrdiff_t>(chunk.start_position);
      chunk.keep.assign(first, first + tokens);
    }
    if (importance) {
      LKV_ASSIGN_OR_RETURN(chunk.mass, cache.Mass(chunk.start_position));
      chunk.mass.levels = mass_levels.data();
    }
    LKV_ASSIGN_OR_RETURN(
        frames[i], EncodeFrame(cache.layout, tokens, cache.Views(chunk.start_position), chunk));
    progress.Add();
    return absl::OkStatus();
  }));
  return frames;
}

// Bytes to embed: what decoding needs of `profile`, if any frame refers to it.
ByteVector EmbeddedProfile(ModelProfile profile, const std::vector<FrameInfo>& infos) {
  const bool needed = std::any_of(infos.begin(), infos.end(),
                                  [](const FrameInfo& info) { return info.needs_profile; });
  if (!needed) return {};
  for (auto& layer : profile.layers) {
    for (PlaneProfile& plane : layer) {
      for (HeadProfile& head : plane.heads) {
        head.query_energy.clear();  // only the encoder looks at it
        head.mean_energy = 0;
      }
    }
  }
  return SerializeProfile(profile);
}

void PrintResult(const Arguments& arguments, const CacheFile& cache, const LkvHeader& header,
                 const CompressResult& result, PresetId preset, size_t chunks) {
  const double bits =
      8.0 * static_cast<double>(result.file_bytes) / static_cast<double>(cache.elements());
  const double mb_per_s = static_cast<double>(cache.raw_bytes()) / 1e6 / result.seconds;
  if (arguments.Has("json")) {
    PrintJson({{"preset", PresetName(preset)},
               {"tokens", cache.tokens},
               {"chunks", chunks},
               {"chunk_tokens", header.chunk_tokens},
               {"raw_bytes", cache.raw_bytes()},
               {"file_bytes", result.file_bytes},
               {"bits_per_element", bits},
               {"ratio", Ratio(cache.raw_bytes(), result.file_bytes)},
               {"quality", QualityJson(result.quality)},
               {"profile_embedded", !header.profile.empty()},
               {"seconds", result.seconds}});
    return;
  }
  PrintFields(
      {{"preset", std::string(PresetName(preset))},
       {"tokens",
        absl::StrCat(cache.tokens, " in ", chunks, " chunks of up to ", header.chunk_tokens)},
       {"raw", BytesText(cache.raw_bytes())},
       {"file", absl::StrCat(BytesText(result.file_bytes), " (", Fixed(bits, 3), " bits/element)")},
       {"ratio", Fixed(Ratio(cache.raw_bytes(), result.file_bytes), 2)},
       {"quality", QualityText(result.quality)},
       {"speed", absl::StrCat(Fixed(mb_per_s, 0), " MB/s")}});
}

absl::Status Compress(const Arguments& arguments) {
  LKV_ASSIGN_OR_RETURN(const PresetId preset, ReadPreset(arguments));
  LKV_ASSIGN_OR_RETURN(const CodecBackend backend, ReadBackend(arguments));
  // A file should be readable alone, unless it carries its profile.
  LKV_ASSIGN_OR_RETURN(const StatsMode stats,
                       ReadStats(arguments, arguments.Has("embed-profile") ? "auto" : "own"));
  LKV_RETURN_IF_ERROR(CheckFlags(arguments, stats));
  LKV_ASSIGN_OR_RETURN(const uint64_t chunk_tokens,
                       arguments.GetNumber("chunk", limits::kMaxChunkTokens,
                                           limits::kMinChunkTokens, limits::kMaxChunkTokens));
  LKV_ASSIGN_OR_RETURN(const size_t threads, ReadThreads(arguments));
  LKV_ASSIGN_OR_RETURN(const CacheFile cache, LoadCacheWithNotices(arguments.positionals()[0]));
  LKV_ASSIGN_OR_RETURN(const std::optional<ModelProfile> profile,
                       ReadProfile(arguments, cache.layout));

  EncodeOptions options;
  options.preset = preset;
  LKV_ASSIGN_OR_RETURN(options.seed, ReadSeed(arguments, preset));
  options.stats = stats;
  options.backend = backend;
  if (profile) options.profile = &*profile;
  LKV_ASSIGN_OR_RETURN(const std::vector<uint8_t> keep,
                       ReadKeep(arguments, cache, static_cast<uint32_t>(chunk_tokens)));
  const auto start = std::chrono::steady_clock::now();
  LKV_ASSIGN_OR_RETURN(const std::vector<ByteVector> frames,
                       EncodeChunks(cache, static_cast<uint32_t>(chunk_tokens), options,
                                    arguments.Has("importance"), keep, threads));
  CompressResult result;
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  LkvHeader header;
  header.layout = cache.layout;
  header.metadata = cache.reader.metadata();
  header.tokens = cache.tokens;
  header.chunk_tokens = static_cast<uint32_t>(chunk_tokens);
  header.token_ids = cache.token_ids;
  header.token_dtype = cache.token_dtype;
  std::vector<FrameInfo> infos;
  QualitySum quality;
  for (const ByteVector& frame : frames) {
    LKV_ASSIGN_OR_RETURN(FrameInfo info, ReadFrameInfo(frame));
    quality.Add(info.quality, info.tokens);
    infos.push_back(std::move(info));
  }
  result.quality = quality.Result();
  if (arguments.Has("embed-profile")) header.profile = EmbeddedProfile(*profile, infos);
  LKV_RETURN_IF_ERROR(WriteLkv(arguments.positionals()[1], header, frames));
  LKV_ASSIGN_OR_RETURN(const MappedFile written, MappedFile::Open(arguments.positionals()[1]));
  result.file_bytes = written.bytes().size();
  PrintResult(arguments, cache, header, result, preset, frames.size());
  return absl::OkStatus();
}

}  // namespace

Command CompressCommand() {
  Command command{
      {"compress",
       "IN.safetensors OUT.lkv",
       2,
       2,
       "Compress a KV cache into a .lkv file.",
       {PresetFlag(),
        ProfileFlag("model profile, made with 'latticekv profile learn'"),
        {"stats", "own|profile|auto",
         "channel statistics: the chunk's own (no profile needed to decode; the default), the "
         "profile's, or whichever is smaller (the default with --embed-profile)"},
        {"embed-profile", "", "put what decoding needs of the profile into the file"},
        {"chunk", "N", "tokens per chunk, 16 to 256 (default 256)"},
        ImportanceFlag(),
        KeepFlag(),
        BackendFlag(),
        ThreadsFlag(),
        JsonFlag()}},
      Compress};
  for (FlagSpec& flag : SeedFlags()) command.spec.flags.push_back(std::move(flag));
  return command;
}

}  // namespace latticekv
