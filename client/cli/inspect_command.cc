// latticekv inspect: what a .lkv file holds, and what its bytes are spent on.
#include <algorithm>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cli/command.h"
#include "client/cli/output.h"
#include "client/src/lkv_file.h"
#include "core/base/status_macros.h"
#include "core/codec/frame_format.h"

namespace latticekv {
namespace {

// Everything the frames of a file say, together.
struct FrameSummary {
  std::set<std::string> presets;
  std::set<std::string> stages;
  std::set<std::string> profile_hashes;
  std::vector<uint64_t> layer_bytes;
  uint64_t header_bytes = 0;
  uint64_t evicted_tokens = 0;
  Quality quality;
};

std::vector<std::string> StageNames(uint32_t stages) {
  std::vector<std::string> out;
  if (stages & kStageExact) out.push_back("exact (byte planes + zstd)");
  if (stages & kStageLattice) out.push_back("lattice (E8, 32-lane rANS)");
  if (stages & kStageRope) out.push_back("rope (keys before rotary embedding)");
  if (stages & kStageProfile) out.push_back("profile (statistics of the model profile)");
  if (stages & kStageMass) out.push_back("mass (steps vary with the attention received)");
  if (stages & kStageEvicted) out.push_back("evicted (some tokens are left out)");
  if (stages & kStageSeed) out.push_back("seed (Hadamard, E8 with f16 scales, zstd)");
  return out;
}

absl::StatusOr<FrameSummary> Summarize(const ParsedLkv& file) {
  FrameSummary out;
  out.layer_bytes.resize(file.header.layout.layers.size());
  QualitySum quality;
  for (size_t i = 0; i < file.frames.size(); ++i) {
    LKV_ASSIGN_OR_RETURN(const FrameInfo info, ReadFrameInfo(file.frames[i]));
    LKV_ASSIGN_OR_RETURN(const ParsedFrame parsed, ParseFrameHeader(file.frames[i]));
    if (info.layer_bytes.size() != out.layer_bytes.size()) {
      return absl::DataLossError(absl::StrCat("frame ", i, " has ", info.layer_bytes.size(),
                                              " layers, the file's layout ",
                                              out.layer_bytes.size()));
    }
    uint64_t layers = 0;
    for (size_t l = 0; l < info.layer_bytes.size(); ++l) {
      out.layer_bytes[l] += info.layer_bytes[l];
      layers += info.layer_bytes[l];
    }
    out.header_bytes += info.frame_bytes - layers;
    out.presets.insert(std::string(PresetName(info.preset)));
    for (std::string& name : StageNames(parsed.header.stages)) out.stages.insert(std::move(name));
    if (info.needs_profile) out.profile_hashes.insert(ToHex(info.profile_hash));
    quality.Add(info.quality, info.tokens);
    out.evicted_tokens += info.evicted_tokens;
  }
  out.quality = quality.Result();
  return out;
}

uint64_t Elements(const LkvHeader& header) {
  uint64_t per_token = 0;
  for (const LayerSpec& layer : header.layout.layers) {
    for (const PlaneSpec& plane : layer.planes) per_token += uint64_t{plane.heads} * plane.head_dim;
  }
  return per_token * header.tokens;
}

void PrintInspectJson(const LkvFile& file, const FrameSummary& frames) {
  const LkvHeader& header = file.content.header;
  const LkvHeaderSizes& sizes = file.content.sizes;
  const uint64_t bytes = file.file.bytes().size();
  const uint64_t raw_bytes = header.layout.token_bytes() * header.tokens;
  uint64_t layers = 0;
  for (uint64_t b : frames.layer_bytes) layers += b;
  PrintJson({{"layout", LayoutJson(header.layout)},
             {"metadata", header.metadata},
             {"tokens", header.tokens},
             {"token_ids", header.token_ids.size()},
             {"evicted_tokens", frames.evicted_tokens},
             {"chunk_tokens", header.chunk_tokens},
             {"chunks", file.content.frames.size()},
             {"presets", frames.presets},
             {"stages", frames.stages},
             {"profile_hashes", frames.profile_hashes},
             {"profile_embedded", !header.profile.empty()},
             {"file_bytes", bytes},
             {"raw_bytes", raw_bytes},
             {"bits_per_element",
              8.0 * static_cast<double>(bytes) / static_cast<double>(Elements(header))},
             {"ratio", Ratio(raw_bytes, bytes)},
             {"quality", QualityJson(frames.quality)},
             {"bytes",
              {{"header", sizes.fixed + sizes.layout},
               {"metadata", sizes.metadata},
               {"token_ids", sizes.token_ids},
               {"profile", sizes.profile},
               {"frame_table", sizes.frame_table},
               {"frame_headers", frames.header_bytes},
               {"layers", layers}}},
             {"layer_bytes", frames.layer_bytes}});
}

void PrintInspectText(const LkvFile& file, const FrameSummary& frames) {
  const LkvHeader& header = file.content.header;
  const LkvHeaderSizes& sizes = file.content.sizes;
  const uint64_t bytes = file.file.bytes().size();
  const uint64_t raw_bytes = header.layout.token_bytes() * header.tokens;
  const double bits = 8.0 * static_cast<double>(bytes) / static_cast<double>(Elements(header));
  std::string profile = "none needed";
  if (!frames.profile_hashes.empty()) {
    profile = absl::StrCat(absl::StrJoin(frames.profile_hashes, ", "),
                           header.profile.empty() ? " (not in the file)" : " (in the file)");
  }
  const auto [smallest, largest] =
      std::minmax_element(frames.layer_bytes.begin(), frames.layer_bytes.end());
  uint64_t layers = 0;
  for (uint64_t b : frames.layer_bytes) layers += b;
  PrintFields(
      {{"model", header.layout.model.empty() ? "not named" : header.layout.model},
       {"layout", LayoutText(header.layout)},
       {"tokens", absl::StrCat(header.tokens, " in ", file.content.frames.size(),
                               " chunks of up to ", header.chunk_tokens,
                               header.token_ids.empty() ? ", without ids" : ", with ids")},
       {"evicted", absl::StrCat(frames.evicted_tokens, " tokens")},
       {"preset", absl::StrJoin(frames.presets, ", ")},
       {"stages", absl::StrJoin(frames.stages, ", ")},
       {"profile", profile},
       {"quality", QualityText(frames.quality)},
       {"raw", BytesText(raw_bytes)},
       {"file", absl::StrCat(BytesText(bytes), ", ", Fixed(bits, 3), " bits/element, ratio ",
                             Fixed(Ratio(raw_bytes, bytes), 2))},
       {"  header", absl::StrCat(sizes.fixed + sizes.layout, " bytes")},
       {"  metadata", absl::StrCat(sizes.metadata, " bytes")},
       {"  token ids", absl::StrCat(sizes.token_ids, " bytes")},
       {"  profile", absl::StrCat(sizes.profile, " bytes")},
       {"  frame table", absl::StrCat(sizes.frame_table, " bytes")},
       {"  frame headers", absl::StrCat(frames.header_bytes, " bytes")},
       {"  layers", absl::StrCat(layers, " bytes, ", *smallest, " to ", *largest, " each")}});
}

absl::Status Inspect(const Arguments& arguments) {
  const std::string& path = arguments.positionals()[0];
  LKV_ASSIGN_OR_RETURN(const LkvFile file, OpenLkv(path));
  absl::StatusOr<FrameSummary> frames = Summarize(file.content);
  if (!frames.ok()) {
    return absl::Status(frames.status().code(),
                        absl::StrCat("'", path, "': ", std::string(frames.status().message())));
  }
  if (arguments.Has("json")) {
    PrintInspectJson(file, *frames);
  } else {
    PrintInspectText(file, *frames);
  }
  return absl::OkStatus();
}

}  // namespace

Command InspectCommand() {
  return {{"inspect",
           "IN.lkv",
           1,
           1,
           "Show a .lkv file: layout, stages, bytes per part, measured quality.",
           {JsonFlag()}},
          Inspect};
}

}  // namespace latticekv
