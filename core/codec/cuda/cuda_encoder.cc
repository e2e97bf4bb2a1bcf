#include "core/codec/cuda/cuda_encoder.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/crc32c.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/codec/cuda/decode_kernel.h"
#include "core/codec/cuda/encode_kernels.h"
#include "core/codec/cuda/encode_plan_builder.h"
#include "core/codec/cuda/seed_kernel.h"
#include "core/codec/layer_codec.h"

namespace latticekv {

absl::Status CudaEncodedBatch::DownloadAsync(const CudaArena& arena, size_t frame,
                                             MutableByteSpan out, cudaStream_t stream) const {
  if (frame >= frames_.size() || out.size() != frames_[frame].size_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the batch has no frame ", frame, " of ", out.size(), " bytes"));
  }
  for (const HostPart& part : frames_[frame].host) {
    std::memcpy(out.data() + part.at, part.bytes.data(), part.bytes.size());
  }
  for (const DevicePart& part : frames_[frame].device) {
    LKV_RETURN_IF_ERROR(
        CudaStatus(cudaMemcpyAsync(out.data() + part.at, arena.device_dev + part.arena_at,
                                   part.size_bytes, cudaMemcpyDeviceToHost, stream),
                   "download of a frame"));
  }
  return absl::OkStatus();
}

absl::StatusOr<CudaEncodePlanner> CudaEncodePlanner::Make(const Layout& layout,
                                                          const CudaEncodeSettings& settings) {
  LKV_RETURN_IF_ERROR(ValidateLayout(layout));
  return CudaEncodePlanner(std::make_unique<EncodePlanBuilder>(layout, settings));
}

CudaEncodePlanner::CudaEncodePlanner(std::unique_ptr<EncodePlanBuilder> builder)
    : builder_(std::move(builder)) {}
CudaEncodePlanner::CudaEncodePlanner(CudaEncodePlanner&&) noexcept = default;
CudaEncodePlanner& CudaEncodePlanner::operator=(CudaEncodePlanner&&) noexcept = default;
CudaEncodePlanner::~CudaEncodePlanner() = default;

absl::Status CudaEncodePlanner::Plan(std::span<const CudaEncodeChunk> chunks,
                                     CudaEncodePlan& plan) {
  if (chunks.empty()) return absl::InvalidArgumentError("a batch needs at least one chunk");
  builder_->Start();
  for (size_t i = 0; i < chunks.size(); ++i) {
    if (absl::Status status = builder_->AddChunk(chunks[i]); !status.ok()) {
      return absl::Status(status.code(),
                          absl::StrCat("chunk ", i, " of the batch: ", status.message()));
    }
  }
  builder_->Finish(plan);
  return absl::OkStatus();
}

absl::StatusOr<CudaEncodePlan> CudaEncodePlan::Make(const Layout& layout,
                                                    const CudaEncodeSettings& settings,
                                                    std::span<const CudaEncodeChunk> chunks) {
  LKV_ASSIGN_OR_RETURN(CudaEncodePlanner planner, CudaEncodePlanner::Make(layout, settings));
  CudaEncodePlan plan;
  LKV_RETURN_IF_ERROR(planner.Plan(chunks, plan));
  return plan;
}

absl::Status CudaEncodePlan::EncodeAsync(const CudaArena& arena, cudaStream_t stream,
                                         uint32_t max_multiprocessors) const {
  LKV_RETURN_IF_ERROR(UploadAsync(arena, stream));
  return LaunchAsync(arena, stream, max_multiprocessors);
}

absl::Status CudaEncodePlan::CheckRun(const CudaArena& arena) const {
  if (tables_ == nullptr) return absl::InvalidArgumentError("the plan is empty; have one made");
  return CheckArena(arena, device_bytes_, pinned_bytes_);
}

absl::Status CudaEncodePlan::UploadAsync(const CudaArena& arena, cudaStream_t stream) const {
  LKV_RETURN_IF_ERROR(CheckRun(arena));
  return UploadTasks(arena, *tables_, tasks_, tables_->bytes.size(), stream);
}

absl::Status CudaEncodePlan::LaunchAsync(const CudaArena& arena, cudaStream_t stream,
                                         uint32_t max_multiprocessors) const {
  LKV_RETURN_IF_ERROR(CheckRun(arena));
  LKV_ASSIGN_OR_RETURN(uint32_t blocks, Multiprocessors());
  if (max_multiprocessors > 0) blocks = std::min(blocks, max_multiprocessors);
  cuda::EncodeLaunch launch = launch_;
  launch.arena_dev = reinterpret_cast<unsigned char*>(arena.device_dev);
  launch.blocks = blocks;
  LKV_RETURN_IF_ERROR(CudaStatus(
      cudaMemsetAsync(arena.device_dev + launch.counter_at, 0, 2 * sizeof(uint32_t), stream),
      "clearing a counter"));
  LKV_RETURN_IF_ERROR(CudaStatus(
      cuda::LaunchRope(launch.arena_dev, launch.rope_tasks_at, launch.rope_tasks, stream),
      "launch of rotary tables"));
  LKV_RETURN_IF_ERROR(CudaStatus(cuda::LaunchUnits(launch, stream), "launch of the quantiser"));
  LKV_RETURN_IF_ERROR(
      CudaStatus(cuda::LaunchEntropy(launch, stream), "launch of the entropy coder"));
  LKV_RETURN_IF_ERROR(CudaStatus(cuda::LaunchAssembly(launch, stream), "launch of the assembly"));
  if (seed_.units > 0) {
    cuda::SeedLaunch seed = seed_;
    seed.arena_dev = launch.arena_dev;
    seed.blocks = max_multiprocessors > 0 ? blocks : blocks * cuda::kSeedBlocks;
    LKV_RETURN_IF_ERROR(CudaStatus(cudaMemsetAsync(arena.device_dev + seed.results_at, 0,
                                                   seed.units * sizeof(cuda::SeedResult), stream),
                                   "clearing results"));
    LKV_RETURN_IF_ERROR(
        CudaStatus(cuda::LaunchSeedEncode(seed, stream), "launch of the seed encoder"));
  }
  if (results_bytes_ == 0) return absl::OkStatus();
  return CudaStatus(
      cudaMemcpyAsync(arena.pinned + results_at(), arena.device_dev + launch.results_at,
                      results_bytes_, cudaMemcpyDeviceToHost, stream),
      "download of sizes");
}

absl::StatusOr<CudaEncodedBatch::Frame> CudaEncodePlan::CollectFrame(const CudaArena& arena,
                                                                     size_t chunk) const {
  const Chunk& c = chunks_[chunk];
  const size_t layers = layout_->layers.size();
  const std::byte* results = arena.pinned + results_at();
  const std::byte* gathered = results + c.gathered_at;
  FrameHeader header = c.header;
  CudaEncodedBatch::Frame frame;
  size_t at = FramePrefixBytes(header, layers);
  for (size_t l = 0; l < layers; ++l) {
    const auto r =
        LoadLe<cuda::LayerResult>(results + (chunk * layers + l) * sizeof(cuda::LayerResult));
    const uint64_t arena_at = launch_.output_at + r.begin;
    if (!frame.device.empty() &&
        frame.device.back().arena_at + frame.device.back().size_bytes == arena_at &&
        frame.device.back().at + frame.device.back().size_bytes == at) {
      frame.device.back().size_bytes += r.size_bytes;
    } else {
      frame.device.push_back({at, arena_at, r.size_bytes});
    }
    at += r.size_bytes;
    ByteWriter exact;
    for (const PlaneSpec& plane : layout_->layers[l].planes) {
      if (plane.role != PlaneRole::kOpaque) continue;
      AppendExactPlane(plane, header.tokens, ContiguousPlane(plane, gathered), exact);
      gathered += plane.token_bytes() * header.tokens;
    }
    const uint32_t crc32c = Crc32c(exact.bytes(), r.crc32c);
    LayerErrors errors;
    errors.within = {r.key_error_sum, r.value_error_sum, r.key_vectors, r.value_vectors};
    AppendLayerEntry(r.size_bytes + exact.bytes().size(), crc32c, errors, header);
    if (r.uses_profile) UseProfile(*settings_.profile, header);
    if (exact.bytes().empty()) continue;
    const size_t part_at = at;
    at += exact.bytes().size();
    frame.host.push_back({part_at, exact.Take()});
  }
  // EncodeFrame encodes such chunks again with every unit held to the contract.
  if (!header.errors.AreWithin(ContractOf(header))) {
    LKV_ASSIGN_OR_RETURN(const CudaHostChunk whole, WholeChunk(chunk));
    return EncodeByHost(whole);
  }
  frame.size_bytes = at;
  frame.host.push_back({0, SerializeFrameHeader(header)});
  return frame;
}

absl::StatusOr<CudaHostChunk> CudaEncodePlan::WholeChunk(size_t chunk) const {
  const Chunk& c = chunks_[chunk];
  const uint32_t tokens = c.header.tokens;
  ByteVector raw(layout_->token_bytes() * tokens);
  size_t at = 0, plane = 0;
  for (const LayerSpec& layer : layout_->layers) {
    for (const PlaneSpec& spec : layer.planes) {
      const size_t bytes = spec.token_bytes() * tokens;
      LKV_RETURN_IF_ERROR(DownloadPlane(spec, c.sources[plane++], c.places,
                                        MutableByteSpan(raw).subspan(at, bytes)));
      at += bytes;
    }
  }
  return CudaHostChunk::Whole(*layout_, tokens, c.options, std::move(raw));
}

absl::StatusOr<CudaHostChunk> CudaEncodePlan::CollectForHost(const CudaArena& arena,
                                                             size_t chunk) const {
  LKV_RETURN_IF_ERROR(CheckRun(arena));
  const Chunk& c = chunks_[chunk];
  const uint32_t tokens = c.header.tokens;
  const std::byte* results = arena.pinned + results_at();
  const std::byte* gathered = results + c.gathered_at;
  if (settings_.preset == PresetId::kExact) {
    return CudaHostChunk::Whole(*layout_, tokens, c.options,
                                {gathered, gathered + layout_->token_bytes() * tokens});
  }
  if (settings_.preset == PresetId::kSeed && c.options.exact_tokens.empty()) {
    const std::byte* units =
        results + (seed_.results_at - launch_.results_at) + c.seed_unit * sizeof(cuda::SeedResult);
    auto coded = CudaHostChunk::Seed(
        *layout_, c.header, c.options,
        {units, results + c.seed_scales_at, results + c.seed_points_at, gathered});
    if (coded) return *std::move(coded);
  }
  return WholeChunk(chunk);
}

absl::StatusOr<CudaEncodedBatch::Frame> CudaEncodePlan::EncodeByHost(
    const CudaHostChunk& chunk) const {
  LKV_ASSIGN_OR_RETURN(ByteVector bytes, chunk.Encode(nullptr));
  CudaEncodedBatch::Frame frame;
  frame.size_bytes = bytes.size();
  frame.by_host = chunk.whole() && settings_.preset != PresetId::kExact;
  frame.host.push_back({0, std::move(bytes)});
  return frame;
}

absl::StatusOr<CudaEncodedBatch> CudaEncodePlan::Collect(const CudaArena& arena) const {
  LKV_RETURN_IF_ERROR(CheckRun(arena));
  CudaEncodedBatch out;
  for (size_t i = 0; i < chunks_.size(); ++i) {
    if (CodedByHost(settings_.preset)) {
      LKV_ASSIGN_OR_RETURN(const CudaHostChunk chunk, CollectForHost(arena, i));
      LKV_ASSIGN_OR_RETURN(out.frames_.emplace_back(), EncodeByHost(chunk));
    } else {
      LKV_ASSIGN_OR_RETURN(out.frames_.emplace_back(), CollectFrame(arena, i));
    }
  }
  return out;
}

absl::StatusOr<std::vector<ByteVector>> CudaEncodePlan::Encode(const CudaArena& arena,
                                                               cudaStream_t stream) const {
  LKV_RETURN_IF_ERROR(EncodeAsync(arena, stream));
  LKV_RETURN_IF_ERROR(
      CudaStatus(cudaStreamSynchronize(stream), "the encoder did not run to its end"));
  LKV_ASSIGN_OR_RETURN(const CudaEncodedBatch batch, Collect(arena));
  std::vector<ByteVector> out;
  for (size_t i = 0; i < batch.frames(); ++i) {
    out.emplace_back(batch.frame_bytes(i));
    LKV_RETURN_IF_ERROR(batch.DownloadAsync(arena, i, out.back(), stream));
  }
  LKV_RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(stream), "frames could not be downloaded"));
  return out;
}

}  // namespace latticekv
