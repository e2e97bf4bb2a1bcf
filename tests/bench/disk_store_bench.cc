// disk_store_bench DIRECTORY [GIB [RECORD_KIB]]: makes a store of that size (10 GiB of 1 MiB
// records) with sparse frames, and measures how long it takes to open by its indexes, and to open
// when one segment has none. Prints a line for each.
#include <sys/resource.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "core/base/crc32c.h"
#include "core/io/file_system.h"
#include "core/store/segment_format.h"
#include "core/store/tiered_store.h"

namespace latticekv {
namespace {

constexpr uint64_t kSegmentBytes = 256 << 20;

double CpuSeconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Frames are holes: recovery by indexes reads none of them.
uint64_t MakeStore(const std::string& dir, uint64_t bytes, uint32_t record_bytes) {
  FileSystem& fs = *FileSystem::Posix();
  if (!fs.CreateDirectory(dir).ok()) abort();
  const ByteVector frame(record_bytes);
  const uint32_t frame_crc = Crc32c(frame);
  uint64_t made = 0, blocks = 0;
  for (uint32_t id = 1; made < bytes; ++id) {
    auto file = fs.Open(JoinPath(dir, SegmentFileName(id)), OpenMode::kCreate);
    if (!file.ok()) abort();
    bool ok = (*file)->WriteAt(0, EncodeSegmentHeader({id, 0})).ok();
    std::vector<FooterEntry> entries;
    uint64_t offset = kSegmentHeaderBytes;
    while (made < bytes) {
      RecordHeader record;
      record.sequence = ++blocks;
      record.key = Sha256Of(AsBytes(std::to_string(blocks)));
      record.frame_bytes = record_bytes;
      record.frame_crc = frame_crc;
      if (blocks % 16 != 1) record.parent = Sha256Of(AsBytes(std::to_string(blocks - 1)));
      if (offset + record.record_bytes() + FooterBytes(entries.size() + 1) > kSegmentBytes) break;
      ok = ok && (*file)->WriteAt(offset, EncodeRecordHeader(record, id)).ok();
      entries.push_back({offset, record});
      offset += record.record_bytes();
      made += record.record_bytes();
    }
    ok = ok && (*file)->WriteAt(offset, EncodeFooter(entries, id, offset)).ok();
    if (!ok) abort();
  }
  return blocks;
}

void Open(const std::string& dir, uint64_t bytes, const char* what) {
  StoreOptions options;
  options.disk_dir = dir;
  options.disk_bytes = bytes + 8 * kSegmentBytes;
  options.segment_bytes = kSegmentBytes;
  const double cpu = CpuSeconds();
  const int64_t start_ms = Clock::Real()->MonotonicMs();
  auto store = TieredStore::Open(options);
  const int64_t ms = Clock::Real()->MonotonicMs() - start_ms;
  if (!store.ok()) {
    printf("%s\n", store.status().ToString().c_str());
    exit(1);
  }
  const StoreStats stats = (*store)->Stats();
  printf("%s: %llu blocks, %.2f GiB, wall %.3f s, CPU %.3f s, index %.1f bytes a block\n", what,
         static_cast<unsigned long long>(stats.recovered_blocks),
         static_cast<double>(bytes) / (1 << 30), static_cast<double>(ms) * 1e-3, CpuSeconds() - cpu,
         static_cast<double>(stats.disk_index_bytes) / static_cast<double>(stats.disk_blocks));
}

}  // namespace
}  // namespace latticekv

int main(int argc, char** argv) {
  using namespace latticekv;
  if (argc < 2) {
    fprintf(stderr, "usage: disk_store_bench DIRECTORY [GIB [RECORD_KIB]]\n");
    return 2;
  }
  const std::string dir = argv[1];
  const uint64_t bytes = (argc > 2 ? strtoull(argv[2], nullptr, 10) : 10) << 30;
  const auto record_bytes =
      static_cast<uint32_t>((argc > 3 ? strtoull(argv[3], nullptr, 10) : 1024) << 10);
  MakeStore(dir, bytes, record_bytes);
  Open(dir, bytes, "indexes");
  // One segment loses its index.
  FileSystem& fs = *FileSystem::Posix();
  auto file = *fs.Open(JoinPath(dir, SegmentFileName(1)), OpenMode::kReadWrite);
  if (!file->Truncate(*file->Size() - 1).ok()) return 1;
  file.reset();
  Open(dir, bytes, "indexes, one segment scanned");
  return 0;
}
