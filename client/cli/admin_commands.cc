// The operator's commands: sessions, session, blocks, stats, explain, verify.
#include <iostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "core/base/clock.h"
#include "core/base/status_macros.h"
#include "latticekv/client.h"

namespace latticekv {
namespace {

constexpr size_t kShortKeyDigits = 16;
constexpr const char* kDefaultNamespace = "default";

FlagSpec NamespaceFlag(const char* otherwise) {
  return {"namespace", "N", absl::StrCat("namespace (default: ", otherwise, ")")};
}

absl::StatusOr<Client> ConnectTo(const Arguments& arguments) {
  LKV_ASSIGN_OR_RETURN(const std::string server, arguments.Require("server"));
  return Connect(server);
}

const char* TierName(Tier tier) {
  switch (tier) {
    case Tier::kMemory:
      return "memory";
    case Tier::kDisk:
      return "disk";
    default:
      return "none";
  }
}

std::string Age(int64_t since_ms) {
  return since_ms == 0 ? "-" : DurationText(Clock::Real()->WallMs() - since_ms) + " ago";
}

Json SessionJson(const SessionSummary& s) {
  return {{"name", s.name},
          {"namespace", s.name_space},
          {"model", s.model},
          {"blocks", s.blocks},
          {"missing_blocks", s.missing_blocks},
          {"tokens", s.tokens},
          {"raw_bytes", s.raw_bytes},
          {"stored_bytes", s.stored_bytes},
          {"ratio", s.ratio},
          {"created_ms", s.created_ms},
          {"last_used_ms", s.last_used_ms},
          {"expires_ms", s.expires_ms},
          {"pinned", s.pinned}};
}

Json BlockJson(const BlockSummary& b) {
  return {{"key", b.key},
          {"parent", b.parent},
          {"namespace", b.name_space},
          {"start_position", b.start_position},
          {"tokens", b.tokens},
          {"evicted_tokens", b.evicted_tokens},
          {"raw_bytes", b.raw_bytes},
          {"stored_bytes", b.stored_bytes},
          {"preset", PresetName(b.preset)},
          {"quality", QualityJson(b.quality)},
          {"tier", TierName(b.tier)},
          {"pinned", b.pinned},
          {"missing", b.missing}};
}

void PrintBlocks(const std::vector<BlockSummary>& blocks) {
  std::vector<std::vector<std::string>> rows = {
      {"KEY", "START", "TOKENS", "RAW", "STORED", "RATIO", "PRESET", "TIER", "QUALITY"}};
  for (const BlockSummary& b : blocks) {
    rows.push_back(
        {b.key.substr(0, kShortKeyDigits), absl::StrCat(b.start_position),
         TokensText(b.tokens, b.evicted_tokens), BytesText(b.raw_bytes), BytesText(b.stored_bytes),
         Fixed(Ratio(b.raw_bytes, b.stored_bytes), 2), std::string(PresetName(b.preset)),
         b.missing ? "missing" : absl::StrCat(TierName(b.tier), b.pinned ? ", pinned" : ""),
         b.missing ? "" : QualityText(b.quality)});
  }
  PrintTable(rows);
}

absl::Status ListSessions(const Arguments& arguments) {
  LKV_ASSIGN_OR_RETURN(Client client, ConnectTo(arguments));
  ListRequest request;
  request.name_space = arguments.Get("namespace");
  std::vector<SessionSummary> sessions;
  do {
    LKV_ASSIGN_OR_RETURN(SessionPage page, client.ListSessions(request));
    sessions.insert(sessions.end(), page.sessions.begin(), page.sessions.end());
    if (!page.next_page_token.empty() && page.next_page_token == request.page_token) {
      return absl::InternalError("the server repeats a page of sessions");
    }
    request.page_token = page.next_page_token;
  } while (!request.page_token.empty());
  if (arguments.Has("json")) {
    Json json = Json::array();
    for (const SessionSummary& s : sessions) json.push_back(SessionJson(s));
    PrintJson({{"sessions", std::move(json)}});
    return absl::OkStatus();
  }
  std::vector<std::vector<std::string>> rows = {
      {"SESSION", "NAMESPACE", "BLOCKS", "TOKENS", "RAW", "STORED", "RATIO", "USED", "MODEL"}};
  for (const SessionSummary& s : sessions) {
    std::string blocks = absl::StrCat(s.blocks);
    if (s.missing_blocks > 0) absl::StrAppend(&blocks, " (", s.missing_blocks, " missing)");
    rows.push_back({absl::StrCat(s.name, s.pinned ? " (pinned)" : ""), s.name_space, blocks,
                    absl::StrCat(s.tokens), BytesText(s.raw_bytes), BytesText(s.stored_bytes),
                    Fixed(s.ratio, 2), Age(s.last_used_ms), s.model});
  }
  PrintTable(rows);
  return absl::OkStatus();
}

absl::Status ShowSession(const Arguments& arguments) {
  LKV_ASSIGN_OR_RETURN(Client client, ConnectTo(arguments));
  LKV_ASSIGN_OR_RETURN(
      const SessionDetail session,
      client.GetSession(arguments.Get("namespace", kDefaultNamespace), arguments.positionals()[0]));
  const SessionSummary& s = session.summary;
  if (arguments.Has("json")) {
    Json blocks = Json::array();
    for (const BlockSummary& b : session.blocks) blocks.push_back(BlockJson(b));
    Json json = SessionJson(s);
    json["fingerprint"] = ToHex(session.fingerprint);
    json["layout"] = LayoutJson(session.layout);
    json["block_list"] = std::move(blocks);
    PrintJson(json);
    return absl::OkStatus();
  }
  QualitySum quality;
  for (const BlockSummary& b : session.blocks) {
    if (!b.missing) quality.Add(b.quality, b.tokens);
  }
  PrintFields({{"session", absl::StrCat(s.name, " in namespace ", s.name_space)},
               {"model", s.model},
               {"layout", LayoutText(session.layout)},
               {"fingerprint", ToHex(session.fingerprint)},
               {"tokens", absl::StrCat(s.tokens, " in ", s.blocks, " blocks, ", s.missing_blocks,
                                       " missing")},
               {"raw", BytesText(s.raw_bytes)},
               {"stored", absl::StrCat(BytesText(s.stored_bytes), ", ratio ", Fixed(s.ratio, 2))},
               {"quality", QualityText(quality.Result())},
               {"created", Age(s.created_ms)},
               {"used", Age(s.last_used_ms)},
               {"expires", s.expires_ms == 0
                               ? std::string("never")
                               : "in " + DurationText(s.expires_ms - Clock::Real()->WallMs())},
               {"pinned", s.pinned ? "yes" : "no"}});
  std::cout << "\n";
  PrintBlocks(session.blocks);
  return absl::OkStatus();
}

absl::Status ListBlocks(const Arguments& arguments) {
  LKV_ASSIGN_OR_RETURN(Client client, ConnectTo(arguments));
  ListRequest request;
  request.name_space = arguments.Get("namespace");
  std::vector<BlockSummary> blocks;
  do {
    LKV_ASSIGN_OR_RETURN(BlockPage page, client.ListBlocks(request));
    blocks.insert(blocks.end(), page.blocks.begin(), page.blocks.end());
    if (!page.next_page_token.empty() && page.next_page_token == request.page_token) {
      return absl::InternalError("the server repeats a page of blocks");
    }
    request.page_token = page.next_page_token;
  } while (!request.page_token.empty());
  if (arguments.Has("json")) {
    Json json = Json::array();
    for (const BlockSummary& b : blocks) json.push_back(BlockJson(b));
    PrintJson({{"blocks", std::move(json)}});
    return absl::OkStatus();
  }
  PrintBlocks(blocks);
  return absl::OkStatus();
}

Json FallbacksJson(const ServerStats& s) {
  Json out = Json::object();
  for (const auto& [reason, jobs] : s.gpu_fallbacks) out[reason] = jobs;
  return out;
}

Json LayoutStateJson(const LayoutState& l) {
  Json profiles = Json::array();
  for (const ProfileState& p : l.profiles) {
    profiles.push_back(
        {{"hash", p.hash}, {"version", p.version}, {"in_use", p.in_use}, {"blocks", p.blocks}});
  }
  return {{"fingerprint", l.fingerprint},
          {"model", l.model},
          {"learning", l.learning},
          {"learnt_tokens", l.learnt_tokens},
          {"profiles", std::move(profiles)}};
}

void PrintLayoutStates(const std::vector<LayoutState>& layouts) {
  std::vector<std::vector<std::string>> rows = {{"LAYOUT", "MODEL", "PROFILE", "KIND", "BLOCKS"}};
  for (const LayoutState& l : layouts) {
    const std::string key = l.fingerprint.substr(0, kShortKeyDigits);
    if (l.profiles.empty()) {
      rows.push_back({key, l.model, "none", l.learning ? "learning" : "", ""});
    }
    for (const ProfileState& p : l.profiles) {
      rows.push_back(
          {key, l.model, p.hash.substr(0, kShortKeyDigits),
           absl::StrCat(p.version == 0 ? "registered" : absl::StrCat("learnt, version ", p.version),
                        p.in_use ? ", in use" : ""),
           absl::StrCat(p.blocks)});
    }
  }
  PrintTable(rows);
}

Json StatsJson(const ServerStats& s) {
  Json layouts = Json::array();
  for (const LayoutState& l : s.layout_states) layouts.push_back(LayoutStateJson(l));
  return {{"blocks", s.blocks},
          {"sessions", s.sessions},
          {"layouts", s.layouts},
          {"raw_bytes", s.raw_bytes},
          {"stored_bytes", s.stored_bytes},
          {"ratio", s.ratio},
          {"memory_used_bytes", s.memory_used_bytes},
          {"memory_peak_bytes", s.memory_peak_bytes},
          {"memory_capacity_bytes", s.memory_capacity_bytes},
          {"pinned_blocks", s.pinned_blocks},
          {"puts", s.puts},
          {"duplicate_puts", s.duplicate_puts},
          {"gets", s.gets},
          {"misses", s.misses},
          {"evicted_blocks", s.evicted_blocks},
          {"evicted_bytes", s.evicted_bytes},
          {"corrupt_blocks", s.corrupt_blocks},
          {"encode_bytes", s.encode_bytes},
          {"decode_bytes", s.decode_bytes},
          {"encode_gbps", s.encode_gbps},
          {"decode_gbps", s.decode_gbps},
          {"open_streams", s.open_streams},
          {"draining", s.draining},
          {"disk_state", s.disk_state},
          {"disk_reason", s.disk_reason},
          {"disk_blocks", s.disk_blocks},
          {"disk_used_bytes", s.disk_used_bytes},
          {"disk_peak_bytes", s.disk_peak_bytes},
          {"disk_capacity_bytes", s.disk_capacity_bytes},
          {"disk_index_bytes", s.disk_index_bytes},
          {"segments", s.segments},
          {"evicted_to_disk", s.evicted_to_disk},
          {"promoted_blocks", s.promoted_blocks},
          {"disk_evicted_blocks", s.disk_evicted_blocks},
          {"durable_blocks", s.durable_blocks},
          {"recovered_blocks", s.recovered_blocks},
          {"lost_blocks", s.lost_blocks},
          {"damaged_records", s.damaged_records},
          {"disk_errors", s.disk_errors},
          {"journal_bytes", s.journal_bytes},
          {"gpu_state", s.gpu_state},
          {"gpu_device", s.gpu_device},
          {"gpu_reason", s.gpu_reason},
          {"gpu_encodes", s.gpu_encodes},
          {"gpu_decodes", s.gpu_decodes},
          {"cpu_encodes", s.cpu_encodes},
          {"cpu_decodes", s.cpu_decodes},
          {"gpu_batches", s.gpu_batches},
          {"gpu_errors", s.gpu_errors},
          {"gpu_regions", s.gpu_regions},
          {"gpu_region_bytes", s.gpu_region_bytes},
          {"gpu_fallbacks", FallbacksJson(s)},
          {"layout_states", std::move(layouts)},
          {"uptime_ms", s.uptime_ms},
          {"version", s.version},
          {"codec_backend", s.codec_backend}};
}

std::string DiskText(const ServerStats& s) {
  if (s.disk_state == "no disk") return "none";
  return absl::StrCat(s.disk_state, s.disk_reason.empty() ? "" : ": ", s.disk_reason, ", ",
                      s.disk_blocks, " blocks, ", BytesText(s.disk_used_bytes), " of ",
                      BytesText(s.disk_capacity_bytes));
}

std::string GpuText(const ServerStats& s) {
  std::string out = absl::StrCat(s.gpu_state, s.gpu_reason.empty() ? "" : ": ", s.gpu_reason,
                                 s.gpu_device.empty() ? "" : ", ", s.gpu_device);
  for (const auto& [reason, jobs] : s.gpu_fallbacks) {
    absl::StrAppend(&out, ", ", jobs, " left to a CPU (", reason, ")");
  }
  return out;
}

absl::Status ShowStats(const Arguments& arguments) {
  LKV_ASSIGN_OR_RETURN(Client client, ConnectTo(arguments));
  LKV_ASSIGN_OR_RETURN(const ServerStats s, client.Stats());
  if (arguments.Has("json")) {
    PrintJson(StatsJson(s));
    return absl::OkStatus();
  }
  PrintFields({{"daemon", absl::StrCat("version ", s.version, ", codec ", s.codec_backend, ", up ",
                                       DurationText(static_cast<int64_t>(s.uptime_ms)),
                                       s.draining ? ", draining" : "")},
               {"stored", absl::StrCat(s.blocks, " blocks in ", s.sessions, " sessions of ",
                                       s.layouts, " layouts, ", s.pinned_blocks, " blocks pinned")},
               {"bytes", absl::StrCat(BytesText(s.stored_bytes), " for ", BytesText(s.raw_bytes),
                                      ", ratio ", Fixed(s.ratio, 2))},
               {"memory", absl::StrCat(BytesText(s.memory_used_bytes), " of ",
                                       BytesText(s.memory_capacity_bytes), ", peak ",
                                       BytesText(s.memory_peak_bytes))},
               {"disk", DiskText(s)},
               {"puts", absl::StrCat(s.puts, ", ", s.duplicate_puts, " already stored")},
               {"gets", absl::StrCat(s.gets, ", ", s.misses, " misses")},
               {"evicted", absl::StrCat(s.evicted_blocks, " blocks, ", BytesText(s.evicted_bytes))},
               {"corrupt", absl::StrCat(s.corrupt_blocks, " blocks")},
               {"gpu", GpuText(s)},
               {"encodes", absl::StrCat(s.gpu_encodes, " by GPU, ", s.cpu_encodes, " by CPU")},
               {"decodes", absl::StrCat(s.gpu_decodes, " by GPU, ", s.cpu_decodes, " by CPU")},
               {"encoded", absl::StrCat(BytesText(s.encode_bytes), ", ", Fixed(s.encode_gbps, 3),
                                        " GB/s a core")},
               {"decoded", absl::StrCat(BytesText(s.decode_bytes), ", ", Fixed(s.decode_gbps, 3),
                                        " GB/s a core")},
               {"streams", absl::StrCat(s.open_streams, " open")}});
  if (!s.layout_states.empty()) {
    std::cout << "\n";
    PrintLayoutStates(s.layout_states);
  }
  return absl::OkStatus();
}

absl::Status Explain(const Arguments& arguments) {
  LKV_ASSIGN_OR_RETURN(Client client, ConnectTo(arguments));
  LKV_ASSIGN_OR_RETURN(const MissExplanation miss,
                       client.ExplainMiss(arguments.Get("namespace", kDefaultNamespace),
                                          arguments.positionals()[0]));
  if (arguments.Has("json")) {
    PrintJson({{"reason", ErrorReasonName(miss.reason)}, {"message", miss.message}});
    return absl::OkStatus();
  }
  PrintFields({{"reason", ErrorReasonName(miss.reason)}, {"message", miss.message}});
  return absl::OkStatus();
}

absl::Status VerifyBlocks(const Arguments& arguments) {
  LKV_ASSIGN_OR_RETURN(Client client, ConnectTo(arguments));
  VerifyResult result;
  {
    Progress progress("checking block", 0);
    uint64_t shown = 0;
    LKV_ASSIGN_OR_RETURN(result, client.Verify([&](const VerifyResult& now) {
      const uint64_t checked = now.blocks_checked + now.disk_records_checked;
      progress.Add(checked - std::exchange(shown, checked));
    }));
  }
  if (arguments.Has("json")) {
    PrintJson({{"blocks_checked", result.blocks_checked},
               {"blocks_corrupt", result.blocks_corrupt},
               {"disk_records_checked", result.disk_records_checked},
               {"disk_records_corrupt", result.disk_records_corrupt},
               {"disk_records_unreadable", result.disk_records_unreadable},
               {"disk_bytes_checked", result.disk_bytes_checked}});
  } else {
    PrintFields({{"checked", absl::StrCat(result.blocks_checked, " blocks in memory, ",
                                          result.disk_records_checked, " records on disk, ",
                                          BytesText(result.disk_bytes_checked))},
                 {"corrupt", absl::StrCat(result.blocks_corrupt, " blocks in memory, ",
                                          result.disk_records_corrupt, " records on disk")},
                 {"unreadable", absl::StrCat(result.disk_records_unreadable, " records on disk")}});
  }
  const uint64_t corrupt = result.blocks_corrupt + result.disk_records_corrupt;
  if (corrupt > 0) {
    return absl::DataLossError(
        absl::StrCat(corrupt, " blocks were corrupt; the server dropped them"));
  }
  if (result.disk_records_unreadable == 0) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(result.disk_records_unreadable,
                                             " records could not be read from disk; look at it"));
}

}  // namespace

std::vector<Command> AdminCommands() {
  return {{{"sessions",
            "",
            0,
            0,
            "List the stored sessions.",
            {ServerFlag(), NamespaceFlag("all"), JsonFlag()}},
           ListSessions},
          {{"session",
            "NAME",
            1,
            1,
            "Show one session and its blocks.",
            {ServerFlag(), NamespaceFlag(kDefaultNamespace), JsonFlag()}},
           ShowSession},
          {{"blocks",
            "",
            0,
            0,
            "List the stored blocks.",
            {ServerFlag(), NamespaceFlag("all"), JsonFlag()}},
           ListBlocks},
          {{"stats", "", 0, 0, "Show what the daemon holds and does.", {ServerFlag(), JsonFlag()}},
           ShowStats},
          {{"explain",
            "KEY",
            1,
            1,
            "Say why a block is not stored.",
            {ServerFlag(), NamespaceFlag(kDefaultNamespace), JsonFlag()}},
           Explain},
          {{"verify",
            "",
            0,
            0,
            "Have the daemon check every stored block.",
            {ServerFlag(), JsonFlag()}},
           VerifyBlocks}};
}

}  // namespace latticekv
