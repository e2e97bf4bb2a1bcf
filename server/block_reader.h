// From a request for blocks to the parts that answer it. Knows no network.
#ifndef LATTICEKV_SERVER_BLOCK_READER_H_
#define LATTICEKV_SERVER_BLOCK_READER_H_

#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "latticekv/v1/blocks.pb.h"
#include "server/engine.h"

namespace latticekv {

// One block of a request. Keeps the bytes, in memory or on disk, readable for as long as it lives.
struct ReadBlock {
  uint32_t index = 0;
  Digest content_hash{};
  StoredBlockPtr block;  // null: `miss` says why
  bool promote = false;  // on disk, and to be brought into memory before it is decoded
  BlockMetadata metadata;
  bool pinned = false;
  v1::ErrorDetail miss;
  std::shared_ptr<const Layout> layout;
  std::shared_ptr<const ModelProfile> profile;
  std::optional<FrameDecoder> decoder;            // of raw reads
  uint64_t payload_bytes = 0;                     // of the parts asked for
  std::shared_ptr<const GpuPlacement> placement;  // of reads into GPU memory
  std::vector<uint64_t> layer_offsets;  // of raw reads, within the block's raw payload; layers + 1

  bool on_disk() const { return block && block->tier() == Tier::kDisk; }
};

struct ReadPlan {
  std::vector<std::unique_ptr<ReadBlock>> blocks;
  bool frames = false;
  std::shared_ptr<const GpuCacheRegion> target;  // of reads into GPU memory
  Reservation promoted;                          // of the engine's promotions
  uint32_t first_layer = 0;
  uint32_t end_layer = 0;  // over all blocks
};

// Resolves the request; blocks that cannot be served have a `miss`. Opens every frame, so it runs
// on the codec threads. INVALID_ARGUMENT, NOT_FOUND (session) or RESOURCE_EXHAUSTED (too many).
absl::StatusOr<ReadPlan> PlanRead(CacheEngine& engine, const v1::GetBlocksRequest& request);

// What a stored frame says of itself, from either tier.
absl::StatusOr<FrameInfo> StoredFrameInfo(const StoredBlock& block);

// The message that precedes the parts.
void FillBlockOpen(const ReadBlock& block, v1::BlockOpen* out);

// Stored bytes of a block: those of one layer or of the frame, read from disk; or none, where the
// block is in memory.
struct StoredBytes {
  StoredBlockPtr in_memory;
  ByteVector read;
  ByteSpan frame() const { return in_memory ? ByteSpan(in_memory->frame) : ByteSpan(read); }
};
// Brings a block on disk into memory; null when there is no room, or it is damaged or gone by now:
// what is open still reads.
StoredBlockPtr LoadBlock(TieredStore& store, const ReadBlock& block);
// Reads one layer of a block on disk, or its whole frame. DATA_LOSS when they are not there: the
// block was counted and dropped then; UNAVAILABLE when the disk fails. Thread-safe, as all that
// follow.
absl::StatusOr<StoredBytes> ReadStored(CacheEngine& engine, const ReadBlock& block,
                                       std::optional<uint32_t> layer);

// Raw bytes of one layer of a block.
size_t LayerBytes(const ReadBlock& block, uint32_t layer);
// Memory that decoding the layer takes when it is read from disk, its raw bytes included.
size_t LayerMemoryBytes(const ReadBlock& block, uint32_t layer);

// Decodes one layer, each plane into its span of `out`; `stored` has this layer or the block.
// DATA_LOSS when the frame is damaged: it was counted and dropped from the store then.
absl::Status DecodeLayer(CacheEngine& engine, const ReadBlock& block, uint32_t layer,
                         const StoredBytes& stored, std::span<const MutableByteSpan> out);

// Decodes one layer into parts of at most kMaxPartBytes that do not cross a plane. `stored` and
// errors as above.
absl::StatusOr<std::vector<v1::GetPart>> ReadLayer(CacheEngine& engine, const ReadBlock& block,
                                                   uint32_t layer, const StoredBytes& stored);

// Decodes the whole block into its place in GPU memory. DATA_LOSS as above; any other error with
// REASON_GPU when the block is there and could not be placed.
absl::Status PlaceBlock(CacheEngine& engine, const ReadBlock& block, const StoredBytes& stored);

// Compares the frame with the checksum taken when it was stored; DATA_LOSS as above.
absl::Status CheckStoredFrame(CacheEngine& engine, const ReadBlock& block,
                              const StoredBytes& stored);

// Bytes [offset, offset + kMaxPartBytes) of block `index`'s frame.
v1::GetPart FramePart(uint32_t index, ByteSpan frame, uint64_t offset);

// Decodes every layer of a block in memory; DATA_LOSS as above. For Verify.
absl::Status VerifyBlock(CacheEngine& engine, const StoredBlockPtr& block);

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_BLOCK_READER_H_
