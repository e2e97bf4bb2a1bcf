// The bytes of a segment file, fixed. LATTICEKV_WRITE_GOLDEN=1 writes them anew.
#include <gtest/gtest.h>

#include <cstdlib>
#include <future>

#include "core/io/memory_file_system.h"
#include "core/store/segment_format.h"
#include "core/store/tiered_store.h"
#include "tests/support/temp_dir.h"

namespace latticekv {
namespace {

constexpr char kDir[] = "/d";
const std::string kName = SegmentFileName(1);
const std::string kGolden = std::string(LATTICEKV_SOURCE_DIR) + "/tests/golden/" + kName;

BlockKey KeyOf(int n) { return Sha256Of(AsBytes("golden" + std::to_string(n))); }

ByteVector Bytes(int seed, size_t size) {
  ByteVector out(size);
  for (size_t i = 0; i < size; ++i) out[i] = static_cast<std::byte>(seed + 3 * i);
  return out;
}

std::unique_ptr<TieredStore> Open(MemoryFileSystem& fs, const Clock& clock) {
  StoreOptions options;
  options.memory_bytes = 1 << 20;
  options.disk_dir = kDir;
  options.disk_bytes = 1 << 20;
  options.segment_bytes = 64 << 10;
  options.file_system = &fs;
  options.clock = &clock;
  auto store = TieredStore::Open(options);
  EXPECT_TRUE(store.ok()) << store.status();
  return store.ok() ? *std::move(store) : nullptr;
}

void PutDurable(TieredStore& store, int n) {
  StoredBlock block;
  block.key = KeyOf(n);
  if (n > 0) block.parent = KeyOf(n - 1);
  block.depth_tokens = 16 * (n + 1);
  block.frame = Bytes(n, 200 + 50 * n);
  block.metadata = Bytes(n + 100, 33);
  block.quality_rank = 2;
  block.reservation = *store.Reserve(TieredStore::EntryBytes(block.frame.size(), 33));
  PutOptions options;
  std::promise<absl::Status> done;
  options.durability = Durability::kDurable;
  options.on_durable = [&](const absl::Status& status) { done.set_value(status); };
  if (n == 1) options.ttl_ms = 60'000;
  ASSERT_TRUE(store.Put(std::move(block), std::move(options)).ok());
  ASSERT_TRUE(done.get_future().get().ok());
}

TEST(SegmentGoldenTest, TheBytesStayAndAreRead) {
  const ManualClock clock;
  MemoryFileSystem fs;
  {
    auto store = Open(fs, clock);
    for (int n = 0; n < 3; ++n) PutDurable(*store, n);
    ASSERT_TRUE(store->Pin(KeyOf(0), 0).ok());
    ASSERT_TRUE(store->Pin(KeyOf(0), 90'000).ok());
    ASSERT_TRUE(store->Flush().ok());
    ASSERT_TRUE(store->Delete(KeyOf(2)));
  }
  // The two pins may be one state record or two: the golden file has what one run gave.
  const ByteVector written = fs.Contents(JoinPath(kDir, kName));
  if (std::getenv("LATTICEKV_WRITE_GOLDEN") != nullptr) {
    testing::WriteText(kGolden, std::string(AsText(written)));
  }
  const std::string golden = testing::ReadText(kGolden);
  const ByteSpan bytes = AsBytes(golden);
  ASSERT_GT(bytes.size(), 1000u);
  // Header and the three blocks, byte for byte.
  const size_t blocks = 64 + 384 + 448 + 512;
  ASSERT_GT(written.size(), blocks);
  EXPECT_TRUE(std::equal(bytes.begin(), bytes.begin() + blocks, written.begin()));

  MemoryFileSystem other;
  ASSERT_TRUE(other.CreateDirectory(kDir).ok());
  other.SetContents(JoinPath(kDir, kName), ByteVector(bytes.begin(), bytes.end()));
  auto store = Open(other, clock);
  ASSERT_NE(store, nullptr);
  EXPECT_EQ(store->Stats().corrupt_dropped, 0u);
  for (int n = 0; n < 2; ++n) {
    const StoredBlockPtr block = store->Get(KeyOf(n));
    ASSERT_NE(block, nullptr);
    EXPECT_EQ(block->frame, Bytes(n, 200 + 50 * n));
    EXPECT_EQ(block->metadata, Bytes(n + 100, 33));
    EXPECT_EQ(block->depth_tokens, 16u * (n + 1));
    EXPECT_EQ(block->quality_rank, 2u);
  }
  EXPECT_TRUE(store->HasChildren(KeyOf(0)));
  EXPECT_TRUE(store->IsPinned(KeyOf(0)));
  EXPECT_FALSE(store->Contains(KeyOf(2)));
  EXPECT_EQ(store->Scrub({}, nullptr)->corrupt, 0u);
}

}  // namespace
}  // namespace latticekv
