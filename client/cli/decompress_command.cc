// latticekv decompress: a .lkv file becomes the safetensors file it was made of.
#include <chrono>
#include <optional>

#include "absl/strings/str_cat.h"
#include "client/cli/codec_flags.h"
#include "client/cli/command.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "client/src/lkv_file.h"
#include "client/src/parallel_for.h"
#include "core/base/status_macros.h"

namespace latticekv {
namespace {

// That of --profile, else the embedded one, else nothing.
absl::StatusOr<std::optional<ModelProfile>> ProfileFor(const Arguments& arguments,
                                                       const LkvHeader& header) {
  LKV_ASSIGN_OR_RETURN(std::optional<ModelProfile> profile, ReadProfile(arguments, header.layout));
  if (profile || header.profile.empty()) return profile;
  LKV_ASSIGN_OR_RETURN(profile, ParseProfile(header.profile, header.layout));
  return profile;
}

absl::Status DecodeChunk(const FrameDecoder& decoder, const Layout& layout, uint64_t first_token,
                         CacheWriter& out) {
  for (uint32_t l = 0; l < layout.layers.size(); ++l) {
    std::vector<MutablePlaneView> planes;
    for (uint32_t p = 0; p < layout.layers[l].planes.size(); ++p) {
      planes.push_back(out.View(l, p, first_token));
    }
    LKV_RETURN_IF_ERROR(decoder.DecodeLayer(l, planes));
  }
  return absl::OkStatus();
}

// 1 or 0 for each token; empty when none was evicted.
std::vector<uint8_t> KeepOf(const std::vector<FrameDecoder>& decoders) {
  std::vector<uint8_t> keep;
  bool evicted = false;
  for (const FrameDecoder& decoder : decoders) {
    const FrameInfo& info = decoder.info();
    evicted |= info.evicted_tokens > 0;
    if (info.keep.empty()) {
      keep.insert(keep.end(), info.tokens, 1);
    } else {
      keep.insert(keep.end(), info.keep.begin(), info.keep.end());
    }
  }
  return evicted ? keep : std::vector<uint8_t>();
}

absl::Status Decompress(const Arguments& arguments) {
  LKV_ASSIGN_OR_RETURN(const CodecBackend backend, ReadBackend(arguments));
  LKV_ASSIGN_OR_RETURN(const size_t threads, ReadThreads(arguments));
  LKV_ASSIGN_OR_RETURN(const LkvFile file, OpenLkv(arguments.positionals()[0]));
  const LkvHeader& header = file.content.header;
  LKV_ASSIGN_OR_RETURN(const std::optional<ModelProfile> profile, ProfileFor(arguments, header));
  // All frames are looked at before anything is written.
  std::vector<FrameDecoder> decoders;
  QualitySum quality;
  for (size_t i = 0; i < file.content.frames.size(); ++i) {
    LKV_ASSIGN_OR_RETURN(FrameDecoder decoder,
                         OpenLkvFrame(file.content, i, profile ? &*profile : nullptr, backend));
    quality.Add(decoder.info().quality, decoder.info().tokens);
    decoders.push_back(std::move(decoder));
  }

  LKV_ASSIGN_OR_RETURN(
      CacheWriter out,
      CacheWriter::Create(arguments.positionals()[1], header.layout, header.tokens,
                          header.token_ids, header.token_dtype, header.metadata, KeepOf(decoders)));
  const auto start = std::chrono::steady_clock::now();
  {
    Progress progress("decompressing chunk", decoders.size());
    LKV_RETURN_IF_ERROR(ParallelFor(decoders.size(), threads, [&](size_t i) -> absl::Status {
      LKV_RETURN_IF_ERROR(
          DecodeChunk(decoders[i], header.layout, uint64_t{i} * header.chunk_tokens, out));
      progress.Add();
      return absl::OkStatus();
    }));
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  LKV_RETURN_IF_ERROR(out.Commit());

  const uint64_t raw_bytes = header.layout.token_bytes() * header.tokens;
  if (arguments.Has("json")) {
    PrintJson({{"tokens", header.tokens},
               {"chunks", decoders.size()},
               {"raw_bytes", raw_bytes},
               {"quality", QualityJson(quality.Result())},
               {"seconds", seconds}});
    return absl::OkStatus();
  }
  PrintFields(
      {{"tokens", absl::StrCat(header.tokens, " in ", decoders.size(), " chunks")},
       {"raw", BytesText(raw_bytes)},
       {"quality", QualityText(quality.Result())},
       {"speed", absl::StrCat(Fixed(static_cast<double>(raw_bytes) / 1e6 / seconds, 0), " MB/s")}});
  return absl::OkStatus();
}

}  // namespace

Command DecompressCommand() {
  return {{"decompress",
           "IN.lkv OUT.safetensors",
           2,
           2,
           "Restore the cache of a .lkv file: same tensors and dtypes.",
           {ProfileFlag("the profile the file refers to, unless it is embedded"), BackendFlag(),
            ThreadsFlag(), JsonFlag()}},
          Decompress};
}

}  // namespace latticekv
