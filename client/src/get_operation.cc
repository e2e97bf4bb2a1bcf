#include "client/src/get_operation.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "client/src/call_limit.h"
#include "client/src/gpu_cache.h"
#include "client/src/placed_receiver.h"
#include "client/src/proto_convert.h"
#include "client/src/stream_watchdog.h"
#include "core/base/crc32c.h"
#include "core/base/status_macros.h"

namespace latticekv {

absl::Status BadReply(const std::string& what) {
  return absl::DataLossError(absl::StrCat("get: the server sent ", what));
}

uint32_t EndLayer(const GetRequest& request) {
  const auto layers = static_cast<uint32_t>(request.layout.layout->layers.size());
  return request.layer_count == 0 ? layers : request.first_layer + request.layer_count;
}

absl::Status CheckBlockCount(const GetRequest& request, size_t blocks) {
  if (request.content_hashes.empty() || blocks == request.content_hashes.size()) {
    return absl::OkStatus();
  }
  return BadReply(absl::StrCat(blocks, " blocks of ", request.content_hashes.size()));
}

absl::StatusOr<ServedBlock> ReadBlockOpen(const GetRequest& request, const v1::BlockOpen& open,
                                          size_t have) {
  const size_t limit =
      request.content_hashes.empty() ? limits::kMaxBlocksPerRequest : request.content_hashes.size();
  if (open.index() != have || have >= limit) {
    return BadReply(absl::StrCat("block ", open.index(), " out of turn"));
  }
  ServedBlock served;
  served.index = open.index();
  if (open.has_miss()) {
    served.miss = StatusFromDetail(FromProto(open.miss()));
    if (const auto hash = ToDigest(open.block().content_hash())) served.block.content_hash = *hash;
    return served;
  }
  LKV_ASSIGN_OR_RETURN(served.block, FromProto(open.block()));
  if (!request.content_hashes.empty() &&
      served.block.content_hash != request.content_hashes[open.index()]) {
    return BadReply(absl::StrCat("another block than asked for at index ", open.index()));
  }
  served.tokens.assign(open.token_ids().begin(), open.token_ids().end());
  if (!served.tokens.empty() && served.tokens.size() != served.block.tokens) {
    return BadReply(
        absl::StrCat(served.tokens.size(), " token ids for a block of ", served.block.tokens));
  }
  served.keep.assign(open.keep().begin(), open.keep().end());
  if (!served.keep.empty() && served.keep.size() != served.block.tokens) {
    return BadReply(absl::StrCat("a mask of ", served.keep.size(), " tokens for a block of ",
                                 served.block.tokens));
  }
  return served;
}

namespace {

v1::GetBlocksRequest MakeGetRequest(const GetRequest& request) {
  v1::GetBlocksRequest out;
  out.set_namespace_(request.layout.name_space);
  out.set_fingerprint(BytesString(request.layout.fingerprint));
  for (const Digest& hash : request.content_hashes) out.add_content_hashes(BytesString(hash));
  out.set_session(request.session);
  *out.mutable_bounds() = ToProto(request.bounds);
  out.set_accept_evicted(request.accept_evicted);
  if (request.decode_on_worker) {
    out.set_encoding(v1::ENCODING_FRAME);  // which comes whole
    return out;
  }
  out.set_encoding(v1::ENCODING_RAW);
  if (request.target.cache != nullptr) return out;  // whole blocks
  out.set_first_layer(request.first_layer);
  out.set_layer_count(request.layer_count);
  out.set_unordered_layers(request.unordered_layers);
  return out;
}

// Raw bytes of the reply, as far as they are known before it.
uint64_t ReplyBytes(const GetRequest& request) {
  if (request.content_hashes.empty()) return limits::kMaxRegionBytes;
  uint64_t token_bytes = 0;
  for (uint32_t l = request.first_layer; l < EndLayer(request); ++l) {
    token_bytes += request.layout.layout->layers[l].token_bytes();
  }
  return token_bytes * request.layout.chunk_tokens * request.content_hashes.size();
}

// One stream, whose messages `receiver` takes. After an error of the receiver it is broken off, or
// read `to_its_end`.
template <typename Receiver>
absl::Status Receive(ReadStream<v1::GetBlocksResponse>& stream, const ClientOptions& options,
                     Receiver& receiver, GetWindow* window, bool to_its_end = false) {
  StreamWatchdog watchdog(options.stream_idle_timeout_ms, [&] { stream.Cancel(); });
  absl::Status wrong;
  v1::GetBlocksResponse message;
  while (stream.Read(message)) {
    if (!wrong.ok()) {  // what is under way still arrives
      watchdog.Touch();
      continue;
    }
    watchdog.Arm(false);  // the sink may take its time
    wrong = receiver.OnMessage(message);
    watchdog.Arm(true);
    if (!wrong.ok() && !to_its_end) stream.Cancel();
  }
  const absl::Status status = stream.Finish();
  if (window != nullptr && status.ok()) window->Finish();
  if (!wrong.ok()) return wrong;
  if (watchdog.fired()) {
    return absl::UnavailableError(
        absl::StrCat("get: no word from the server for ", options.stream_idle_timeout_ms, " ms"));
  }
  LKV_RETURN_IF_ERROR(status);
  watchdog.Arm(false);
  return receiver.OnEnd();
}

// Whatever happens, the stream is read to its end: until then the server may write to the target.
absl::Status RunGpuAttempt(const GetRoute& route, const GetRequest& request, GetSink& sink,
                           const ClientOptions& options, uint64_t region) {
  v1::GetBlocksRequest opening = MakeGetRequest(request);
  opening.mutable_target()->set_region_id(region);
  *opening.mutable_target()->mutable_table() = ToProto(request.target);
  auto stream = route.stub->GetBlocks(opening);
  PlacedReceiver receiver(request, sink);
  return Receive(*stream, options, receiver, nullptr, true);
}

// As RunAttempt, with GPU memory as target; once more when the server has lost it.
absl::Status RunGpuAttempts(const GetRoute& route, const GetRequest& request, GetSink& sink,
                            const ClientOptions& options, const CallLimit& limit) {
  LKV_ASSIGN_OR_RETURN(LeasedGpuCache* const cache,
                       LeasedCache("get", request.target, route.lease_stub));
  LKV_ASSIGN_OR_RETURN(uint64_t region, cache->Region(limit.LeftMs()));
  absl::Status status = RunGpuAttempt(route, request, sink, options, region);
  if (!IsRegionGone(status)) return status;
  cache->Retire(region);
  LKV_RETURN_IF_ERROR(sink.OnRestart());
  LKV_ASSIGN_OR_RETURN(region, cache->Region(limit.LeftMs()));
  return RunGpuAttempt(route, request, sink, options, region);
}

absl::Status RunAttempt(const GetRoute& route, const GetRequest& request, GetSink& sink,
                        const ClientOptions& options, const CallLimit& limit) {
  if (request.target.cache != nullptr) return RunGpuAttempts(route, request, sink, options, limit);
  v1::GetBlocksRequest opening = MakeGetRequest(request);
  std::unique_ptr<GetWindow> window;
  if (!request.decode_on_worker) window = GetWindow::Open(route.regions, ReplyBytes(request));
  if (window) window->Describe(opening.mutable_window());
  auto stream = route.stub->GetBlocks(opening);
  const CallGuard guard(limit, [&] { stream->Cancel(); });
  if (request.decode_on_worker) {
    FrameReceiver receiver(request, sink, route.profiles);
    return Receive(*stream, options, receiver, nullptr);
  }
  GetReceiver receiver(request, sink, window.get());
  return Receive(*stream, options, receiver, window.get());
}

}  // namespace

GetReceiver::GetReceiver(const GetRequest& request, GetSink& sink, GetWindow* window)
    : request_(request),
      layout_(*request.layout.layout),
      sink_(sink),
      window_(window),
      end_layer_(EndLayer(request)),
      current_layer_(request.first_layer) {
  layer_offsets_.push_back(0);
  for (const LayerSpec& layer : layout_.layers) {
    layer_offsets_.push_back(layer_offsets_.back() + layer.token_bytes());
  }
}

absl::Status GetReceiver::OnMessage(const v1::GetBlocksResponse& message) {
  if (message.has_open()) return OnOpen(message.open());
  if (message.has_part()) {
    return OnPart(message.part(), AsBytes(message.part().data()), message.part().crc32c());
  }
  if (message.has_window_parts()) {
    for (const v1::GetPart& part : message.window_parts().parts()) {
      const auto data = window_ ? window_->Data(part) : std::nullopt;
      if (!data) return BadReply("a part outside of the window");
      LKV_RETURN_IF_ERROR(OnPart(part, *data, std::nullopt));
      window_->Release(part);
    }
    return absl::OkStatus();
  }
  if (message.has_failed()) return OnFailed(message.failed());
  return absl::OkStatus();  // from a newer server
}

absl::Status GetReceiver::OnOpen(const v1::BlockOpen& open) {
  if (parts_began_) return BadReply(absl::StrCat("block ", open.index(), " out of turn"));
  LKV_ASSIGN_OR_RETURN(const ServedBlock served, ReadBlockOpen(request_, open, blocks_.size()));
  Block block;
  if (served.miss.ok()) {
    block.tokens = served.block.tokens;
    block.live = true;
    block.layer = current_layer_;
    ++live_;
    ++pending_;
  }
  blocks_.push_back(block);
  return sink_.OnBlock(served);
}

absl::Status GetReceiver::CheckPart(const v1::GetPart& part, ByteSpan data) const {
  if (part.index() >= blocks_.size() || !blocks_[part.index()].live) {
    return BadReply(absl::StrCat("data of block ", part.index(), ", which is not open"));
  }
  const Block& block = blocks_[part.index()];
  const bool in_turn = request_.unordered_layers || block.layer == current_layer_;
  if (!in_turn || part.layer() != block.layer || block.layer >= end_layer_ ||
      part.plane() != block.plane || part.plane() >= layout_.layers[block.layer].planes.size()) {
    return BadReply(absl::StrCat("layer ", part.layer(), " plane ", part.plane(), " of block ",
                                 part.index(), " out of turn"));
  }
  const std::vector<PlaneSpec>& planes = layout_.layers[block.layer].planes;
  uint64_t plane_start = layer_offsets_[block.layer];
  for (uint32_t p = 0; p < block.plane; ++p) plane_start += planes[p].token_bytes();
  const uint64_t plane_bytes = planes[block.plane].token_bytes() * block.tokens;
  const uint64_t size = data.size();
  if (part.offset() != plane_start * block.tokens + block.plane_offset || size == 0 ||
      size > plane_bytes - block.plane_offset) {
    return BadReply(absl::StrCat(size, " bytes at offset ", part.offset(), " of block ",
                                 part.index(), ", which do not fit"));
  }
  return absl::OkStatus();
}

absl::Status GetReceiver::OnPart(const v1::GetPart& part, ByteSpan data,
                                 std::optional<uint32_t> crc32c) {
  parts_began_ = true;
  LKV_RETURN_IF_ERROR(CheckPart(part, data));
  if (crc32c && (data.size() > limits::kMaxPartBytes || Crc32c(data) != *crc32c)) {
    return BadReply(absl::StrCat("a part of block ", part.index(), " with a wrong checksum"));
  }
  Block& block = blocks_[part.index()];
  const std::vector<PlaneSpec>& planes = layout_.layers[block.layer].planes;
  const PlaneSpec& plane = planes[block.plane];
  if (block.plane_offset == 0) {
    LKV_ASSIGN_OR_RETURN(block.destination,
                         sink_.Destination(part.index(), block.layer, block.plane));
  }
  if (block.destination.data != nullptr) {
    ScatterPlane(plane, block.plane_offset, data, block.destination);
  }
  block.plane_offset += data.size();
  if (block.plane_offset < plane.token_bytes() * block.tokens) return absl::OkStatus();
  block.plane_offset = 0;
  if (++block.plane < planes.size()) return absl::OkStatus();
  block.plane = 0;
  if (block.layer++ == current_layer_) --pending_;
  return FinishLayers();
}

absl::Status GetReceiver::OnFailed(const v1::BlockOpen& failed) {
  if (failed.index() >= blocks_.size() || !blocks_[failed.index()].live) {
    return BadReply(absl::StrCat("an error for block ", failed.index(), ", which is not open"));
  }
  Block& block = blocks_[failed.index()];
  block.live = false;
  --live_;
  if (block.layer == current_layer_) --pending_;
  LKV_RETURN_IF_ERROR(
      sink_.OnBlockFailed(failed.index(), StatusFromDetail(FromProto(failed.miss()))));
  parts_began_ = true;
  return FinishLayers();
}

absl::Status GetReceiver::FinishLayers() {
  while (pending_ == 0 && live_ > 0 && current_layer_ < end_layer_) {
    LKV_RETURN_IF_ERROR(sink_.OnLayer(current_layer_));
    ++current_layer_;
    for (const Block& block : blocks_) pending_ += block.live && block.layer == current_layer_;
  }
  return absl::OkStatus();
}

absl::Status GetReceiver::OnEnd() {
  LKV_RETURN_IF_ERROR(CheckBlockCount(request_, blocks_.size()));
  if (live_ > 0 && current_layer_ < end_layer_) {
    return BadReply(absl::StrCat("no more after layer ", current_layer_, " of ", end_layer_));
  }
  return absl::OkStatus();
}

void ScatterPlane(const PlaneSpec& plane, uint64_t offset, ByteSpan data,
                  const MutablePlaneView& view) {
  const size_t row_bytes = plane.token_bytes();
  const size_t head_bytes = plane.head_dim * DTypeBytes(plane.dtype);
  // Unit of bytes that lie side by side in both: everything, a token's row, or a head.
  const bool rows_whole = view.head_stride == head_bytes || plane.heads == 1;
  if (rows_whole && view.token_stride == row_bytes) {
    std::memcpy(view.data + offset, data.data(), data.size());
    return;
  }
  const size_t unit = rows_whole ? row_bytes : head_bytes;
  while (!data.empty()) {
    const uint64_t token = offset / row_bytes, head = offset % row_bytes / unit;
    const size_t within = offset % unit;
    const size_t size = std::min(unit - within, data.size());
    std::memcpy(view.data + token * view.token_stride + head * view.head_stride + within,
                data.data(), size);
    data = data.subspan(size);
    offset += size;
  }
}

absl::Status CheckGet(const GetRequest& request) {
  if (request.layout.layout == nullptr) {
    return absl::InvalidArgumentError("get: register the layout first");
  }
  if (request.content_hashes.empty() == request.session.empty()) {
    return absl::InvalidArgumentError("get: ask for either content hashes or a session");
  }
  if (request.content_hashes.size() > limits::kMaxBlocksPerRequest) {
    return absl::InvalidArgumentError(absl::StrCat("get: ", request.content_hashes.size(),
                                                   " blocks, at most ",
                                                   limits::kMaxBlocksPerRequest, " at once"));
  }
  const size_t layers = request.layout.layout->layers.size();
  if (request.first_layer >= layers || request.layer_count > layers - request.first_layer) {
    return absl::InvalidArgumentError(absl::StrCat("get: layers ", request.first_layer, " + ",
                                                   request.layer_count,
                                                   " are outside of the layout's ", layers));
  }
  if (request.target.cache == nullptr) return absl::OkStatus();
  if (request.decode_on_worker) {
    return absl::InvalidArgumentError(
        "get: the worker decodes into host memory only; leave decode_on_worker out and the "
        "daemon's GPU decodes, or leave the target out");
  }
  if (request.first_layer != 0 || (request.layer_count != 0 && request.layer_count != layers)) {
    return absl::InvalidArgumentError("get: GPU memory takes whole blocks; ask for all layers");
  }
  return CheckGpuTable("get", request.target, request.layout);
}

absl::Status RunGet(const GetRoute& route, const GetRequest& request, GetSink& sink,
                    const ClientOptions& options, RetryState retry) {
  LKV_RETURN_IF_ERROR(CheckGet(request));
  const CallLimit limit(request.timeout_ms, request.cancel);
  while (true) {
    LKV_RETURN_IF_ERROR(limit.Check("get"));
    absl::Status status = RunAttempt(route, request, sink, options, limit);
    if (status.ok()) return status;
    LKV_RETURN_IF_ERROR(limit.Check("get"));
    if (!retry.WaitToRetry(status, limit.LeftMs())) return status;
    LKV_RETURN_IF_ERROR(sink.OnRestart());
  }
}

}  // namespace latticekv
