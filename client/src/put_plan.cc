#include "client/src/put_plan.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "client/src/proto_convert.h"
#include "core/base/status_macros.h"
#include "core/layout/chain_hash.h"

namespace latticekv {
namespace {

// One row is one token of one plane; parts hold whole rows.
static_assert(size_t{limits::kMaxHeads} * limits::kMaxHeadDim * 4 <= limits::kMaxPartBytes);

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
  const std::vector<LayerSpec>& layers = registered.layout->layers;
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

}  // namespace

absl::StatusOr<std::vector<PutChunk>> PlanPut(const PutRequest& request) {
  LKV_RETURN_IF_ERROR(CheckRequest(request));
  const RegisteredLayout& registered = request.layout;
  const uint32_t chunk_tokens = registered.chunk_tokens;
  const std::vector<Digest> hashes =
      ChainHashes(registered.fingerprint, request.tokens, chunk_tokens, request.salt);
  std::vector<PutChunk> chunks;
  for (size_t i = request.start / chunk_tokens; i < hashes.size(); ++i) {
    PutChunk chunk;
    chunk.index = static_cast<uint32_t>(chunks.size());
    chunk.start_position = uint64_t{i} * chunk_tokens;
    chunk.tokens = request.tokens.subspan(
        chunk.start_position,
        std::min<size_t>(chunk_tokens, request.tokens.size() - chunk.start_position));
    chunk.content_hash = hashes[i];
    if (i > 0) chunk.parent_hash = hashes[i - 1];
    chunk.payload_bytes = registered.layout->token_bytes() * chunk.tokens.size();
    chunks.push_back(chunk);
  }
  return chunks;
}

v1::PutOpen MakePutOpen(const PutRequest& request) {
  v1::PutOpen open;
  open.set_namespace_(request.layout.name_space);
  open.set_fingerprint(BytesString(request.layout.fingerprint));
  open.set_session(request.session);
  open.set_preset(ToProto(request.preset));
  open.set_wait_for(request.durable ? v1::BLOCK_STATE_DURABLE : v1::BLOCK_STATE_MEMORY);
  open.set_ttl_ms(request.ttl_ms);
  open.set_encoding(v1::ENCODING_RAW);
  return open;
}

v1::BlockHeader MakeBlockHeader(const PutRequest& request, const PutChunk& chunk) {
  v1::BlockHeader header;
  header.set_index(chunk.index);
  header.set_content_hash(BytesString(chunk.content_hash));
  if (chunk.parent_hash) header.set_parent_hash(BytesString(*chunk.parent_hash));
  header.set_start_position(chunk.start_position);
  header.mutable_token_ids()->Add(chunk.tokens.begin(), chunk.tokens.end());
  header.set_payload_bytes(chunk.payload_bytes);
  header.set_salt(request.salt);
  for (uint64_t position : request.exact_positions) {
    if (position >= chunk.start_position && position - chunk.start_position < chunk.tokens.size()) {
      header.add_exact_tokens(static_cast<uint32_t>(position - chunk.start_position));
    }
  }
  return header;
}

PayloadReader::PayloadReader(const PutRequest& request, const PutChunk& chunk)
    : request_(request),
      layout_(*request.layout.layout),
      first_token_(chunk.start_position - request.start),
      tokens_(static_cast<uint32_t>(chunk.tokens.size())) {}

void PayloadReader::NextPart(std::string& data) {
  data.clear();
  while (!done()) {
    const PlaneSpec& plane = layout_.layers[layer_].planes[plane_];
    if (data.size() + plane.token_bytes() > limits::kMaxPartBytes) break;
    AppendRow(data);
    if (++token_ < tokens_) continue;
    token_ = 0;
    if (++plane_ < layout_.layers[layer_].planes.size()) continue;
    plane_ = 0;
    ++layer_;
  }
  offset_ += data.size();
}

void PayloadReader::AppendRow(std::string& data) {
  const PlaneSpec& plane = layout_.layers[layer_].planes[plane_];
  const PlaneView& view = request_.planes[layer_][plane_];
  const size_t head_bytes = plane.head_dim * DTypeBytes(plane.dtype);
  const std::byte* row = view.data + (first_token_ + token_) * view.token_stride;
  if (view.head_stride == head_bytes) {
    data.append(AsText({row, plane.token_bytes()}));
    return;
  }
  for (uint32_t h = 0; h < plane.heads; ++h) {
    data.append(AsText({row + h * view.head_stride, head_bytes}));
  }
}

}  // namespace latticekv
