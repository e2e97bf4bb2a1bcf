// Requests and results of the data path: layouts, puts, look-ups, gets.
#ifndef LATTICEKV_BLOCKS_H_
#define LATTICEKV_BLOCKS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "core/base/limits.h"
#include "core/base/sha256.h"
#include "core/codec/codec.h"
#include "core/layout/layout.h"
#include "core/layout/model_profile.h"
#include "latticekv/cancel.h"

namespace latticekv {

struct RegisterLayoutRequest {
  std::string name_space;
  Layout layout;
  // Canonical bytes (SerializeProfile) of the layout's model profile; empty: none.
  ByteVector profile;
  // Of the namespace, set by its first layout; 0: the server's default.
  uint32_t chunk_tokens = 0;
};

// A layout the server knows: what puts and gets refer to. Cheap to copy.
struct RegisteredLayout {
  std::shared_ptr<const Layout> layout;
  Digest fingerprint{};
  std::string name_space;
  // Chunks of this namespace start at multiples of this many tokens.
  uint32_t chunk_tokens = limits::kMaxChunkTokens;
  // Hash of the profile the server encodes with; all zero: none.
  Digest profile_hash{};
  // That profile, when it was registered through this client: what compressing on the worker uses.
  std::shared_ptr<const ModelProfile> profile;
};

class GpuCache;  // gpu_memory.h

// Where tokens of a sequence lie in GPU memory: the token at position P is slot
// (P - first_position) % block_tokens of block blocks[(P - first_position) / block_tokens].
struct GpuBlockTable {
  std::shared_ptr<GpuCache> cache;  // Client::OpenGpuCache, of the same client; null: no GPU memory
  std::vector<uint32_t> blocks;     // of the cache; it must reach to the last token
  uint64_t first_position = 0;
};

enum class BlockState { kMemory, kDurable };
enum class Tier { kUnspecified, kMemory, kDisk };

// What became of one chunk of a put.
struct BlockResult {
  Digest content_hash{};
  uint64_t start_position = 0;
  uint32_t tokens = 0;
  absl::Status status;   // not OK: the block was not stored, and why
  bool have_it = false;  // it was stored already, at least as good; no payload was sent
  uint64_t stored_bytes = 0;
  uint64_t raw_bytes = 0;
  Quality quality;
  BlockState state = BlockState::kMemory;
};

struct PutRequest {
  RegisteredLayout layout;
  std::string session;  // optional: a name to list, pin and delete the blocks by
  // Token ids of the whole sequence from position 0, since a block's name depends on all tokens
  // before it.
  std::span<const uint32_t> tokens;
  // Position of the first token in `planes`, a multiple of layout.chunk_tokens. Tensors of the
  // tokens before it are not needed.
  uint64_t start = 0;
  // [layer][plane] in the layout's order, tokens.size() - start tokens each. Read during the call.
  std::vector<std::vector<PlaneView>> planes;
  // Instead of `planes`: the tensors lie in GPU memory, of the layout of this request. What writes
  // them must be done (a synchronised stream), and they stay as they are until on_block has told of
  // their block or the call has returned. A block that the GPU cannot encode (docs/operations.md,
  // GPU; or a device that is short of memory or off) has an error with ErrorReason::kGpu: put it
  // again with `planes`.
  GpuBlockTable gpu;
  PresetId preset = kDefaultPreset;
  SeedOptions seed;      // of PresetId::kSeed
  bool durable = false;  // acknowledge only when it survives a power loss
  int64_t ttl_ms = 0;    // of the session and its blocks; 0: none
  std::string salt;      // LoRA adapter, multimodal hash
  // Positions to store bit for bit, increasing.
  std::vector<uint64_t> exact_positions;
  // Attention that tokens received, from position `start` on, for steps that are finer where
  // readers look; `queries` could see the token at `start`. Without levels those of the tokens at
  // hand are used, so put a text at once. Read during the call.
  AttentionMass mass;
  // 1 or 0 for every one of `tokens`, 0: evict it. Chosen once, after the prefill, for instance
  // with ChooseKeptTokens (core/codec/token_eviction.h); every chunk keeps one at least. Empty: all
  // stay. Blocks with evicted tokens have names of their own and are read by who accepts them.
  std::vector<uint8_t> keep;
  // Called for each finished block, from one thread at a time, not necessarily the caller's.
  std::function<void(const BlockResult&)> on_block;
  // Encode here and send frames: a sixth or less of the bytes, for CPU time of the caller's thread.
  // Not with GPU memory.
  bool compress_on_worker = false;
  int64_t timeout_ms = 0;  // of the whole call, attempts included; 0: none
  CancelToken cancel;
};

struct PutResult {
  std::vector<BlockResult> blocks;  // in order of position
  uint64_t stored_bytes = 0;        // sums over the blocks that are stored
  uint64_t raw_bytes = 0;
  uint64_t sent_bytes = 0;  // payload that went over the wire
  // The first block's error; OK when all blocks are stored.
  absl::Status status() const;
};

// 0 means no bound.
struct QualityBounds {
  double max_logit_noise = 0;
  double max_value_error = 0;
  bool require_exact = false;
};

struct BlockInfo {
  Digest content_hash{};
  std::vector<std::byte> parent_hash;  // empty: the first of its sequence
  uint64_t start_position = 0;
  uint32_t tokens = 0;
  uint64_t stored_bytes = 0;
  uint64_t raw_bytes = 0;
  PresetId preset = kDefaultPreset;
  Quality quality;
  Tier tier = Tier::kUnspecified;
  bool pinned = false;
  uint32_t evicted_tokens = 0;  // they read as zeros
};

struct LookupRequest {
  RegisteredLayout layout;
  std::span<const uint32_t> tokens;  // from position 0, at most kMaxLookupTokens
  std::string salt;
  QualityBounds bounds;
  bool accept_evicted = false;
};

struct LookupBlock {
  BlockInfo block;
  uint32_t usable_tokens = 0;  // leading tokens of the block that match
};

struct LookupResult {
  uint64_t usable_tokens = 0;
  std::vector<LookupBlock> blocks;  // longest stored prefix, in order
  // Why the first missing block is missing, with an ErrorDetail; OK: everything is stored.
  absl::Status miss;
};

struct GetRequest {
  RegisteredLayout layout;
  std::vector<Digest> content_hashes;  // either these blocks
  std::string session;                 // or all of a session, in order
  QualityBounds bounds;
  bool accept_evicted = false;
  uint32_t first_layer = 0;
  uint32_t layer_count = 0;  // 0: to the last
  // Layers of a block may come while those before them of other blocks are still read from disk:
  // what is there is on its way while the rest is read, and a get from disk ends earlier; its first
  // layer is complete a little later. For sinks that have memory for all layers at once.
  bool unordered_layers = false;
  // Get the frames as they are stored and decode here: a sixth or less of the bytes of a lossy
  // preset, for CPU time of the caller's thread. All of them come before the first layer is
  // decoded.
  bool decode_on_worker = false;
  // The blocks are decoded into this GPU memory, whole: all layers, not on the worker, and the sink
  // is asked for no destinations. A block whose tokens the table does not hold fails the request.
  // The places of the blocks belong to the daemon until the call returns, or until the sink was
  // told of a block. So that it can return, the call is not broken off midway: `cancel`,
  // `timeout_ms` and an error of the sink end it when the daemon is done, and only a daemon that is
  // silent for stream_idle_timeout_ms is given up (UNAVAILABLE; it may still write then).
  GpuBlockTable target;
  int64_t timeout_ms = 0;  // of the whole call, attempts included; 0: none
  CancelToken cancel;
};

// A block as a get announces it.
struct ServedBlock {
  uint32_t index = 0;  // position in the request or in the session
  BlockInfo block;
  absl::Status miss;  // not OK: this block will not come, and why
  std::vector<uint32_t> tokens;
  std::vector<uint8_t> keep;  // 1 or 0 for each token; empty: none was evicted
};

// Receives a get. Methods are called from the thread that called Get, in this order: OnBlock for
// each block, then for each layer Destination for each block and plane, and OnLayer. With
// unordered_layers Destination goes through the layers of each block by itself; OnLayer comes in
// order as ever. With GPU memory as target OnBlock is followed by OnBlockPlaced or OnBlockFailed
// for each block that is not a miss, and there is no Destination and no OnLayer. Any error a method
// returns ends the get, which returns it.
class GetSink {
 public:
  virtual ~GetSink() = default;
  virtual absl::Status OnBlock(const ServedBlock& block) = 0;
  // Where to write the [tokens, heads, head_dim] of this plane of this block. A null data pointer:
  // the plane is not wanted. The memory must stay valid until Get returns.
  virtual absl::StatusOr<MutablePlaneView> Destination(uint32_t block_index, uint32_t layer,
                                                       uint32_t plane) = 0;
  // `layer` of every block that has not failed is written.
  virtual absl::Status OnLayer(uint32_t layer) = 0;
  // The block is in its place in GPU memory: work that is queued from now on may read it.
  virtual absl::Status OnBlockPlaced(uint32_t block_index) { return absl::OkStatus(); }
  // The block turned out damaged on the server: drop what was written of it. With GPU memory as
  // target and ErrorReason::kGpu it is sound and the GPU cannot decode it: get it without a target.
  virtual absl::Status OnBlockFailed(uint32_t block_index, const absl::Status& why) = 0;
  // The connection broke and everything is sent again, from OnBlock on.
  virtual absl::Status OnRestart() = 0;
};

// A prefix in memory, as GetPrefix allocates it.
struct StoredPrefix {
  std::vector<BlockInfo> blocks;  // in order, up to the first missing one
  std::vector<uint32_t> tokens;   // their token ids
  std::vector<uint8_t> keep;      // 1 or 0 for each token; empty: none was evicted
  // [layer - first_layer][plane]: contiguous [tokens, heads, head_dim].
  std::vector<std::vector<ByteVector>> planes;
  // Not OK: a block is missing and the prefix ends before it.
  absl::Status miss;
};

// Blocks by content hash, or all of a session.
struct BlockSelector {
  std::string name_space;
  std::vector<Digest> content_hashes;
  std::string session;
};

struct SelectionResult {
  uint32_t found = 0;
  uint32_t missing = 0;
};

}  // namespace latticekv

#endif  // LATTICEKV_BLOCKS_H_
