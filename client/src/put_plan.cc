#include "client/src/put_plan.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "client/src/gpu_cache.h"
#include "client/src/proto_convert.h"
#include "core/base/crc32c.h"
#include "core/base/status_macros.h"
#include "core/codec/attention_mass.h"
#include "core/layout/chain_hash.h"

namespace latticekv {
namespace {

// One row is one token of one plane; parts hold whole rows.
static_assert(size_t{limits::kMaxHeads} * limits::kMaxHeadDim * 4 <= limits::kMaxPartBytes);

// Bytes that are gathered before their checksum is taken.
constexpr size_t kCacheBytes = 64 << 10;

absl::Status CheckHostPlanes(const PutRequest& request) {
  const std::vector<LayerSpec>& layers = request.layout.layout->layers;
  if (request.planes.size() != layers.size()) {
    return absl::InvalidArgumentError(absl::StrCat("put: tensors of ", request.planes.size(),
                                                   " layers for a layout of ", layers.size()));
  }
  for (size_t l = 0; l < layers.size(); ++l) {
    if (request.planes[l].size() != layers[l].planes.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("put: layer ", l, " has ", request.planes[l].size(),
                       " tensors, the layout has ", layers[l].planes.size(), " planes"));
    }
    for (const PlaneView& view : request.planes[l]) {
      if (view.data == nullptr) {
        return absl::InvalidArgumentError(absl::StrCat("put: a tensor of layer ", l, " is null"));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CheckGpuMemory(const PutRequest& request) {
  if (!request.planes.empty()) {
    return absl::InvalidArgumentError("put: tensors come in host or in GPU memory, not in both");
  }
  if (request.compress_on_worker) {
    return absl::InvalidArgumentError(
        "put: the worker compresses out of host memory only; copy the tensors to the host, or "
        "leave compress_on_worker out and the daemon's GPU compresses");
  }
  LKV_RETURN_IF_ERROR(CheckGpuTable("put", request.gpu, request.layout));
  if (PartOfTable(request.gpu, request.start, request.tokens.size() - request.start)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("put: the block table of ", request.gpu.blocks.size(), " blocks from position ",
                   request.gpu.first_position, " on does not hold the tokens from ", request.start,
                   " to ", request.tokens.size()));
}

absl::Status CheckRequest(const PutRequest& request) {
  const RegisteredLayout& registered = request.layout;
  if (registered.layout == nullptr) {
    return absl::InvalidArgumentError("put: register the layout first");
  }
  if (registered.chunk_tokens < limits::kMinChunkTokens ||
      registered.chunk_tokens > limits::kMaxChunkTokens) {
    return absl::InvalidArgumentError(absl::StrCat("put: chunk_tokens is ", registered.chunk_tokens,
                                                   ", must be ", limits::kMinChunkTokens, " to ",
                                                   limits::kMaxChunkTokens));
  }
  if (request.start % registered.chunk_tokens != 0) {
    return absl::InvalidArgumentError(absl::StrCat("put: start ", request.start,
                                                   " is not a multiple of the chunk size ",
                                                   registered.chunk_tokens));
  }
  if (request.start >= request.tokens.size()) {
    return absl::InvalidArgumentError(absl::StrCat("put: there are ", request.tokens.size(),
                                                   " tokens, none at or after start ",
                                                   request.start));
  }
  if (request.tokens.size() > limits::kMaxPosition) {
    return absl::InvalidArgumentError("put: more tokens than kMaxPosition");
  }
  if (!request.keep.empty() && request.keep.size() != request.tokens.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "put: keep has ", request.keep.size(), " entries for ", request.tokens.size(), " tokens"));
  }
  return request.gpu.cache == nullptr ? CheckHostPlanes(request) : CheckGpuMemory(request);
}

// Those that the caller knows, or else those of what is put. Null without attention mass.
std::shared_ptr<const std::vector<float>> PutMassLevels(const PutRequest& request) {
  const AttentionMass& mass = request.mass;
  if (mass.data == nullptr) return nullptr;
  const size_t layers = request.layout.layout->layers.size();
  if (mass.levels != nullptr) {
    return std::make_shared<const std::vector<float>>(mass.levels, mass.levels + layers);
  }
  std::vector<uint8_t> keep;
  if (!request.keep.empty()) {
    keep.assign(request.keep.begin() + static_cast<std::ptrdiff_t>(request.start),
                request.keep.end());
  }
  return std::make_shared<const std::vector<float>>(
      MassLevels(mass, layers, static_cast<uint32_t>(request.tokens.size() - request.start),
                 request.start, keep));
}

// Of a chunk; none without attention mass.
AttentionMass ChunkMass(const PutChunk& chunk) {
  const AttentionMass& mass = chunk.request->mass;
  if (mass.data == nullptr) return {};
  const uint64_t skipped = chunk.start_position - chunk.request->start;
  return {mass.data + skipped, mass.layer_stride, mass.queries - std::min(mass.queries, skipped),
          chunk.mass_levels->data()};
}

}  // namespace

absl::StatusOr<std::vector<PutChunk>> PlanPut(const PutRequest& request) {
  LKV_RETURN_IF_ERROR(CheckRequest(request));
  const RegisteredLayout& registered = request.layout;
  const uint32_t chunk_tokens = registered.chunk_tokens;
  const std::vector<Digest> hashes =
      ChainHashes(registered.fingerprint, request.tokens, chunk_tokens, request.salt, request.keep);
  const auto mass_levels = PutMassLevels(request);
  std::vector<PutChunk> chunks;
  for (size_t i = request.start / chunk_tokens; i < hashes.size(); ++i) {
    PutChunk chunk;
    chunk.request = &request;
    chunk.index = static_cast<uint32_t>(chunks.size());
    chunk.start_position = uint64_t{i} * chunk_tokens;
    chunk.tokens = request.tokens.subspan(
        chunk.start_position,
        std::min<size_t>(chunk_tokens, request.tokens.size() - chunk.start_position));
    chunk.content_hash = hashes[i];
    if (i > 0) chunk.parent_hash = hashes[i - 1];
    chunk.payload_bytes = registered.layout->token_bytes() * chunk.tokens.size();
    chunk.mass_levels = mass_levels;
    chunks.push_back(chunk);
  }
  return chunks;
}

namespace {

// What the header says beside names: which tokens stay, and where attention went.
void AddTokenChoices(const PutRequest& request, const PutChunk& chunk, v1::BlockHeader* header) {
  const size_t tokens = chunk.tokens.size();
  if (!request.keep.empty()) {
    const auto first = request.keep.begin() + static_cast<std::ptrdiff_t>(chunk.start_position);
    header->mutable_keep()->assign(first, first + static_cast<std::ptrdiff_t>(tokens));
  }
  if (request.mass.data == nullptr || request.compress_on_worker) return;
  const AttentionMass mass = ChunkMass(chunk);
  for (size_t l = 0; l < request.layout.layout->layers.size(); ++l) {
    const float* of_layer = mass.data + l * mass.layer_stride;
    header->mutable_attention_mass()->Add(of_layer, of_layer + tokens);
  }
  header->set_mass_queries(mass.queries);
  header->mutable_mass_levels()->Add(chunk.mass_levels->begin(), chunk.mass_levels->end());
}

}  // namespace

v1::PutOpen MakePutOpen(const PutRequest& request) {
  v1::PutOpen open;
  open.set_namespace_(request.layout.name_space);
  open.set_fingerprint(BytesString(request.layout.fingerprint));
  open.set_session(request.session);
  open.set_preset(ToProto(request.preset));
  open.set_wait_for(request.durable ? v1::BLOCK_STATE_DURABLE : v1::BLOCK_STATE_MEMORY);
  open.set_ttl_ms(request.ttl_ms);
  open.set_encoding(request.compress_on_worker ? v1::ENCODING_FRAME : v1::ENCODING_RAW);
  if (request.preset == PresetId::kSeed) {
    v1::SeedSettings* seed = open.mutable_seed();
    seed->set_key_bits(static_cast<uint32_t>(request.seed.key_bits));
    seed->set_value_bits(static_cast<uint32_t>(request.seed.value_bits));
    seed->set_group_scales(request.seed.group_scales);
    seed->set_no_token_delta(!request.seed.token_delta);
  }
  return open;
}

v1::BlockHeader MakeBlockHeader(const PutChunk& chunk) {
  const PutRequest& request = *chunk.request;
  v1::BlockHeader header;
  header.set_index(chunk.index);
  header.set_content_hash(BytesString(chunk.content_hash));
  if (chunk.parent_hash) header.set_parent_hash(BytesString(*chunk.parent_hash));
  header.set_start_position(chunk.start_position);
  header.mutable_token_ids()->Add(chunk.tokens.begin(), chunk.tokens.end());
  header.set_payload_bytes(chunk.payload_bytes);
  header.set_salt(request.salt);
  AddTokenChoices(request, chunk, &header);
  for (uint64_t position : request.exact_positions) {
    if (position >= chunk.start_position && position - chunk.start_position < chunk.tokens.size()) {
      header.add_exact_tokens(static_cast<uint32_t>(position - chunk.start_position));
    }
  }
  return header;
}

v1::RegionPart MakeGpuPart(const PutChunk& chunk) {
  v1::RegionPart part;
  part.set_index(chunk.index);
  part.set_region_id(chunk.gpu_region);
  *part.mutable_table() =
      *PartOfTable(chunk.request->gpu, chunk.start_position, chunk.tokens.size());
  return part;
}

absl::StatusOr<ByteVector> EncodeChunk(const PutChunk& chunk) {
  const PutRequest& request = *chunk.request;
  EncodeOptions options;
  options.preset = request.preset;
  options.profile = request.layout.profile.get();
  options.start_position = chunk.start_position;
  const v1::BlockHeader header = MakeBlockHeader(chunk);
  options.exact_tokens.assign(header.exact_tokens().begin(), header.exact_tokens().end());
  options.seed = request.seed;
  options.keep.assign(header.keep().begin(), header.keep().end());
  options.mass = ChunkMass(chunk);
  std::vector<std::vector<PlaneView>> planes = request.planes;
  for (std::vector<PlaneView>& layer : planes) {
    for (PlaneView& view : layer) {
      view.data += (chunk.start_position - request.start) * view.token_stride;
    }
  }
  return EncodeFrame(*request.layout.layout, static_cast<uint32_t>(chunk.tokens.size()), planes,
                     options);
}

PayloadReader::PayloadReader(const PutChunk& chunk)
    : request_(*chunk.request),
      layout_(*request_.layout.layout),
      first_token_(chunk.start_position - request_.start),
      tokens_(static_cast<uint32_t>(chunk.tokens.size())) {}

template <typename Take>
void PayloadReader::NextRows(size_t max_bytes, const Take& take) {
  const PlaneSpec& plane = layout_.layers[layer_].planes[plane_];
  const PlaneView& view = request_.planes[layer_][plane_];
  const size_t head_bytes = plane.head_dim * DTypeBytes(plane.dtype);
  const size_t row_bytes = plane.token_bytes();
  const auto rows =
      static_cast<uint32_t>(std::min<size_t>(max_bytes / row_bytes, tokens_ - token_));
  const std::byte* row = view.data + (first_token_ + token_) * view.token_stride;
  const bool heads_together = plane.heads == 1 || view.head_stride == head_bytes;
  if (heads_together && view.token_stride == row_bytes) {
    take(ByteSpan(row, rows * row_bytes));
  } else {
    for (uint32_t t = 0; t < rows; ++t, row += view.token_stride) {
      const uint32_t pieces = heads_together ? 1 : plane.heads;
      for (uint32_t h = 0; h < pieces; ++h) {
        take(ByteSpan(row + h * view.head_stride, row_bytes / pieces));
      }
    }
  }
  offset_ += rows * row_bytes;
  token_ += rows;
  if (token_ < tokens_) return;
  token_ = 0;
  if (++plane_ < layout_.layers[layer_].planes.size()) return;
  plane_ = 0;
  ++layer_;
}

uint32_t PayloadReader::NextPart(std::string& data) {
  data.clear();
  data.reserve(limits::kMaxPartBytes);
  uint32_t crc = 0;
  while (!done()) {
    const size_t before = data.size();
    const size_t row_bytes = layout_.layers[layer_].planes[plane_].token_bytes();
    const size_t room = limits::kMaxPartBytes - before;
    if (room < row_bytes) break;
    NextRows(std::min(room, std::max(row_bytes, kCacheBytes)),
             [&](ByteSpan bytes) { data.append(AsText(bytes)); });
    // While the bytes are in the cache.
    crc = Crc32c(AsBytes(data).subspan(before), crc);
  }
  return crc;
}

void PayloadReader::CopyAll(std::byte* out) {
  while (!done()) {
    NextRows(std::numeric_limits<size_t>::max(), [&](ByteSpan bytes) {
      std::memcpy(out, bytes.data(), bytes.size());
      out += bytes.size();
    });
  }
}

}  // namespace latticekv
