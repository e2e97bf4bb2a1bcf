// latticekv put: stores a cache on a daemon.
#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "client/cli/codec_flags.h"
#include "client/cli/command.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "core/base/status_macros.h"
#include "latticekv/client.h"

namespace latticekv {
namespace {

constexpr uint64_t kMaxTtlSeconds = uint64_t{10} * 365 * 86400;

struct PutFlags {
  std::string server, session, name_space;
  PresetId preset = kDefaultPreset;
  SeedOptions seed;
  uint32_t chunk_tokens = 0;
  int64_t ttl_ms = 0;
};

absl::StatusOr<PutFlags> ReadFlags(const Arguments& arguments) {
  PutFlags out;
  LKV_ASSIGN_OR_RETURN(out.server, arguments.Require("server"));
  LKV_ASSIGN_OR_RETURN(out.session, arguments.Require("session"));
  LKV_ASSIGN_OR_RETURN(out.preset, ReadPreset(arguments));
  LKV_ASSIGN_OR_RETURN(out.seed, ReadSeed(arguments, out.preset));
  out.name_space = arguments.Get("namespace", "default");
  LKV_ASSIGN_OR_RETURN(
      const uint64_t chunk,
      arguments.GetNumber("chunk", 0, limits::kMinChunkTokens, limits::kMaxChunkTokens));
  LKV_ASSIGN_OR_RETURN(const uint64_t ttl_s, arguments.GetNumber("ttl", 0, 1, kMaxTtlSeconds));
  out.chunk_tokens = static_cast<uint32_t>(chunk);
  out.ttl_ms = static_cast<int64_t>(ttl_s) * 1000;
  return out;
}

void PrintPut(const Arguments& arguments, const PutFlags& flags, const CacheFile& cache,
              const PutResult& result, uint64_t evicted, double seconds) {
  QualitySum quality;
  size_t had = 0;
  bool durable = true;
  for (const BlockResult& block : result.blocks) {
    quality.Add(block.quality, block.tokens);
    had += block.have_it;
    durable &= block.state == BlockState::kDurable;
  }
  const double gb_per_s = static_cast<double>(result.sent_bytes) / 1e9 / seconds;
  if (arguments.Has("json")) {
    PrintJson({{"session", flags.session},
               {"namespace", flags.name_space},
               {"preset", PresetName(flags.preset)},
               {"tokens", cache.tokens},
               {"chunks", result.blocks.size()},
               {"chunks_already_stored", had},
               {"raw_bytes", result.raw_bytes},
               {"stored_bytes", result.stored_bytes},
               {"sent_bytes", result.sent_bytes},
               {"ratio", Ratio(result.raw_bytes, result.stored_bytes)},
               {"evicted_tokens", evicted},
               {"quality", QualityJson(quality.Result())},
               {"durable", durable},
               {"seconds", seconds},
               {"gb_per_s", gb_per_s}});
    return;
  }
  PrintFields({{"session", absl::StrCat(flags.session, " in namespace ", flags.name_space)},
               {"tokens", TokensText(cache.tokens, evicted)},
               {"chunks", absl::StrCat(result.blocks.size(), ", ", had, " already stored")},
               {"raw", BytesText(result.raw_bytes)},
               {"stored", BytesText(result.stored_bytes)},
               {"ratio", Fixed(Ratio(result.raw_bytes, result.stored_bytes), 2)},
               {"quality", QualityText(quality.Result())},
               {"put", result.sent_bytes == 0 ? "nothing to send"
                                              : absl::StrCat(Fixed(gb_per_s, 3), " GB/s")}});
}

absl::Status Put(const Arguments& arguments) {
  LKV_ASSIGN_OR_RETURN(const PutFlags flags, ReadFlags(arguments));
  LKV_ASSIGN_OR_RETURN(const CacheFile cache, LoadCacheWithNotices(arguments.positionals()[0]));
  if (cache.token_ids.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("'", arguments.positionals()[0],
                                                   "' has no token_ids; blocks are found by them"));
  }
  LKV_ASSIGN_OR_RETURN(const std::optional<ModelProfile> profile,
                       ReadProfile(arguments, cache.layout));
  LKV_ASSIGN_OR_RETURN(Client client, Connect(flags.server));
  RegisterLayoutRequest registration;
  registration.name_space = flags.name_space;
  registration.layout = cache.layout;
  registration.chunk_tokens = flags.chunk_tokens;
  if (profile) registration.profile = SerializeProfile(*profile);

  PutRequest request;
  LKV_ASSIGN_OR_RETURN(request.layout, client.RegisterLayout(registration));
  request.session = flags.session;
  request.tokens = cache.token_ids;
  request.planes = cache.Views();
  request.preset = flags.preset;
  request.seed = flags.seed;
  if (arguments.Has("importance")) {
    LKV_ASSIGN_OR_RETURN(request.mass, cache.Mass());
  }
  LKV_ASSIGN_OR_RETURN(request.keep, ReadKeep(arguments, cache, request.layout.chunk_tokens));
  request.durable = arguments.Has("durable");
  request.ttl_ms = flags.ttl_ms;
  PutResult result;
  const auto start = std::chrono::steady_clock::now();
  {
    Progress progress("storing token", cache.tokens);
    request.on_block = [&](const BlockResult& block) { progress.Add(block.tokens); };
    LKV_ASSIGN_OR_RETURN(result, client.PutPrefix(request));
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  LKV_RETURN_IF_ERROR(result.status());
  const auto evicted =
      static_cast<uint64_t>(std::count(request.keep.begin(), request.keep.end(), 0));
  PrintPut(arguments, flags, cache, result, evicted, seconds);
  return absl::OkStatus();
}

}  // namespace

Command PutCommand() {
  Command command{
      {"put",
       "IN.safetensors",
       1,
       1,
       "Store a KV cache on a daemon under a session's name.",
       {ServerFlag(),
        {"session", "NAME", "name to store it under"},
        {"namespace", "N", "namespace (default: default)"},
        PresetFlag(),
        ProfileFlag("model profile, made with 'latticekv profile learn'"),
        {"durable", "", "return when the blocks survive a power loss"},
        {"ttl", "SECONDS", "forget the session after this time (default: never)"},
        {"chunk", "N", "tokens per block, 16 to 256, for a new namespace (default 256)"},
        ImportanceFlag(),
        KeepFlag(),
        JsonFlag()}},
      Put};
  for (FlagSpec& flag : SeedFlags()) command.spec.flags.push_back(std::move(flag));
  return command;
}

}  // namespace latticekv
