// Looking at every record on disk.
#include <algorithm>
#include <chrono>
#include <set>
#include <thread>

#include "core/base/status_macros.h"
#include "core/store/store_impl.h"

namespace latticekv {
namespace {

constexpr size_t kBufferBytes = 256 << 10;
constexpr int64_t kReportIntervalMs = 200;

// Sleeps so that no more than so many bytes pass in a second.
class Throttle {
 public:
  explicit Throttle(uint64_t bytes_per_second) : rate_(bytes_per_second) {}
  void Pass(uint64_t bytes) {
    if (rate_ == 0) return;
    next_ += std::chrono::nanoseconds(
        static_cast<int64_t>(static_cast<double>(bytes) * 1e9 / static_cast<double>(rate_)));
    std::this_thread::sleep_until(next_);
  }

 private:
  const uint64_t rate_;
  std::chrono::steady_clock::time_point next_ = std::chrono::steady_clock::now();
};

}  // namespace

absl::Status StoreImpl::ScrubSegment(const SegmentPtr& segment, ByteVector& buffer,
                                     ScrubReport& report,
                                     const std::function<bool(uint64_t)>& each) {
  File& file = *segment->file;
  uint64_t end;
  bool has_footer;
  {
    MutexLock lock(mutex_);
    end = segment->end;
    has_footer = segment->has_footer;
  }
  SegmentHeaderBytes header{};
  LKV_RETURN_IF_ERROR(file.ReadAt(0, header).status());
  if (!DecodeSegmentHeader(header).ok()) ++report.corrupt;
  std::vector<FooterEntry> footer;
  if (has_footer) {
    LKV_ASSIGN_OR_RETURN(const uint64_t size, file.Size());
    auto read = ReadFooter(file, segment->id, size);
    if (read.ok()) {
      footer = *std::move(read);
    } else if (absl::IsDataLoss(read.status())) {
      ++report.corrupt;
    } else {
      return read.status();
    }
  }
  LKV_ASSIGN_OR_RETURN(const ScanResult scan,
                       ScanRecords(file, segment->id, kSegmentHeaderBytes, end, buffer, each));
  report.records += scan.good.size() + scan.damaged.size();
  report.corrupt += scan.damaged.size() + scan.gaps;
  if (scan.damaged.empty() && scan.gaps == 0) return absl::OkStatus();

  // Every block whose record is not among the good ones goes; index and damaged records tell keys.
  std::set<uint64_t> good;
  for (const FooterEntry& entry : scan.good) good.insert(entry.offset);
  std::vector<FooterEntry> suspects = scan.damaged;
  suspects.insert(suspects.end(), footer.begin(), footer.end());
  Removed removed;
  {
    MutexLock lock(mutex_);
    for (const FooterEntry& entry : suspects) {
      Slot slot;
      if (good.contains(entry.offset) || !AtPlace(*segment, entry, &slot)) continue;
      DropDamaged(entry.record.key, disk_index_.PlaceOf(slot), removed);
    }
    std::vector<Slot> unnamed;
    disk_index_.Visit(0, UINT32_MAX, [&](Slot slot) {
      const DiskPlace place = disk_index_.PlaceOf(slot);
      if (place.segment == segment->number && segments_[place.segment] == segment &&
          place.offset < end && !good.contains(place.offset)) {
        unnamed.push_back(slot);
      }
    });
    for (const Slot slot : unnamed) {
      BlockKey key{};
      disk_index_.KeyPrefix(slot, &key);
      if (const BlockIndex::Entry* entry = index_.FindByPrefix(key)) key = entry->block->key;
      RemoveFromDisk(slot, key, /*tombstone=*/false, removed);
      ++counters_.corrupt_dropped;
    }
  }
  Announce(removed);
  return absl::OkStatus();
}

absl::StatusOr<ScrubReport> StoreImpl::Scrub(
    const ScrubOptions& options, const std::function<bool(const ScrubReport&)>& progress) {
  if (!has_disk_) {
    return absl::FailedPreconditionError(
        "the store has no disk tier; set --disk_dir and --disk_bytes");
  }
  const size_t size = std::min(kBufferBytes, std::max<size_t>(budget_.capacity() / 16, 4096));
  LKV_ASSIGN_OR_RETURN(const Reservation reservation, Reserve(size));
  ByteVector buffer(size);
  std::vector<SegmentPtr> segments;
  {
    MutexLock lock(mutex_);
    for (const SegmentPtr& segment : segments_) {
      if (segment) segments.push_back(segment);
    }
  }
  ScrubReport report;
  Throttle throttle(options.bytes_per_second);
  int64_t reported_ms = 0;
  const auto each = [&](uint64_t bytes) {
    report.bytes += bytes;
    throttle.Pass(bytes);
    const int64_t now_ms = Clock::Real()->MonotonicMs();
    if (!progress || now_ms - reported_ms < kReportIntervalMs) return true;
    reported_ms = now_ms;
    return progress(report);
  };
  for (SegmentPtr& segment : segments) {
    const absl::Status status = ScrubSegment(segment, buffer, report, each);
    if (absl::IsCancelled(status)) return report;
    if (!status.ok()) ++report.unreadable;
    ++report.segments;
    segment.reset();  // may be reclaimed and closed
  }
  if (progress) progress(report);
  return report;
}

}  // namespace latticekv
