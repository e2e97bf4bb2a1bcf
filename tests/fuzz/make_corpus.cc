// Writes the seed inputs of the fuzz targets: make_fuzz_corpus FOLDER, with a folder in it for each
// target. A frame of every combination of stages, layouts, profiles and files, small ones; run
// again when the format gains a stage.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "client/src/cache_file.h"
#include "client/src/lkv_file.h"
#include "core/codec/codec.h"
#include "tests/fuzz/subjects.h"
#include "tests/support/stage_settings.h"

namespace latticekv::testing {
namespace {

constexpr uint32_t kTokens = 9;

void Write(const std::string& path, uint8_t head, ByteSpan bytes) {
  std::ofstream out(path, std::ios::binary);
  out.put(static_cast<char>(head));
  out << AsText(bytes);
}

std::string Numbered(const std::string& name, uint32_t stages) {
  return name + "_stages_" + std::to_string(stages);
}

absl::Status WriteFrames(size_t index, const std::string& folder) {
  const FuzzSubject& subject = FuzzSubjects()[index];
  const auto head = [&](FuzzInput kind, uint8_t flags) {
    return static_cast<uint8_t>(static_cast<uint8_t>(kind) | flags | index << kFuzzSubjectShift);
  };
  const std::string at = folder + "/" + subject.layout.model;
  const SampleChunk chunk = MakeSampleChunk(subject.layout, kTokens, 4);
  std::vector<float> mass;
  for (uint32_t t = 0; t < kTokens; ++t) mass.push_back(static_cast<float>(t * t % 37));
  const bool rotary = subject.layout.layers[0].planes[0].rope.rotary_dims > 0;
  const bool opaque = subject.layout.layers[0].planes[1].role == PlaneRole::kOpaque;
  const auto write = [&](const std::string& name, const EncodeOptions& options,
                         uint8_t flags) -> absl::Status {
    const auto frame = EncodeFrame(subject.layout, kTokens, chunk.views(), options);
    if (!frame.ok()) return frame.status();
    Write(name, head(FuzzInput::kFrame, flags), *frame);
    return absl::OkStatus();
  };
  for (uint32_t stages : AllowedStages()) {
    const bool rope = stages & kStageRope;
    if (!(stages & kStageExact) && rope != rotary) continue;
    if (opaque && stages & kStageEvicted) continue;
    EncodeOptions options = OptionsForStages(stages, kTokens, subject.profile, mass);
    options.seed = {3, 2, index % 2 == 0, index % 2 != 0};
    const absl::Status status = write(Numbered(at, stages), options, kFuzzReseal);
    if (!status.ok()) return status;
  }
  // Presets differ in numbers alone; the finest and the coarsest use the ends of the tables.
  for (PresetId preset : {PresetId::kNear, PresetId::kTiny}) {
    EncodeOptions options;
    options.preset = preset;
    options.profile = &subject.profile;
    const absl::Status status =
        write(at + "_" + std::string(PresetName(preset)), options, kFuzzReseal);
    if (!status.ok()) return status;
  }
  Write(at + "_layout", head(FuzzInput::kLayout, 0), SerializeLayout(subject.layout));
  Write(at + "_profile", head(FuzzInput::kProfile, 0), SerializeProfile(subject.profile));
  return absl::OkStatus();
}

std::string FileBytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// A .lkv file of two chunks and the safetensors file it would come from.
absl::Status WriteFiles(const FuzzSubject& subject, const std::string& folder) {
  constexpr uint32_t kFileTokens = 18;
  const SampleChunk chunk = MakeSampleChunk(subject.layout, kFileTokens, 6);
  LkvHeader header;
  header.layout = subject.layout;
  header.metadata = LayoutMetadata(subject.layout);
  header.tokens = kFileTokens;
  header.chunk_tokens = limits::kMinChunkTokens;
  for (uint32_t t = 0; t < kFileTokens; ++t) header.token_ids.push_back(t * 2741 % 49152);
  header.profile = SerializeProfile(subject.profile);
  std::vector<ByteVector> frames;
  for (uint32_t start = 0; start < kFileTokens; start += header.chunk_tokens) {
    auto views = chunk.views();
    for (auto& layer : views) {
      for (PlaneView& plane : layer) plane.data += start * plane.token_stride;
    }
    EncodeOptions options;
    options.start_position = start;
    options.profile = &subject.profile;
    const auto frame = EncodeFrame(
        subject.layout, std::min(header.chunk_tokens, kFileTokens - start), views, options);
    if (!frame.ok()) return frame.status();
    frames.push_back(*frame);
  }
  const std::string at = folder + "/" + subject.layout.model, scratch = at + "_scratch";
  absl::Status status = WriteLkv(scratch, header, frames);
  if (!status.ok()) return status;
  Write(at + "_lkv", kFuzzReseal, AsBytes(FileBytes(scratch)));
  std::filesystem::remove(scratch);
  auto writer = CacheWriter::Create(scratch, subject.layout, kFileTokens, header.token_ids,
                                    TensorDType::kI32, header.metadata);
  if (!writer.ok()) return writer.status();
  const auto views = chunk.views();
  for (uint32_t l = 0; l < views.size(); ++l) {
    for (uint32_t p = 0; p < views[l].size(); ++p) {
      const size_t bytes = subject.layout.layers[l].planes[p].token_bytes() * kFileTokens;
      std::copy_n(views[l][p].data, bytes, writer->View(l, p, 0).data);
    }
  }
  status = writer->Commit();
  if (status.ok()) Write(at + "_safetensors", kFuzzSafetensors, AsBytes(FileBytes(scratch)));
  std::filesystem::remove(scratch);
  return status;
}

int Main(const std::string& folder) {
  const std::string frames = folder + "/decoder_fuzz", files = folder + "/file_fuzz";
  for (const std::string& f : {frames, files}) {
    std::filesystem::remove_all(f);
    std::filesystem::create_directories(f);
  }
  for (size_t s = 0; s < FuzzSubjects().size(); ++s) {
    absl::Status status = WriteFrames(s, frames);
    if (status.ok()) status = WriteFiles(FuzzSubjects()[s], files);
    if (status.ok()) continue;
    std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace latticekv::testing

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "make_fuzz_corpus FOLDER\n");
    return 2;
  }
  return latticekv::testing::Main(argv[1]);
}
