// Opening a directory: what is on disk becomes the index again.
#include <algorithm>
#include <unordered_map>

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/store/store_impl.h"

namespace latticekv {
namespace {

constexpr uint64_t kMinSegmentBytes = 64 << 10;
constexpr size_t kMinBufferBytes = 4096, kMaxBufferBytes = 1 << 20;
// Of unused frame buffers, beside the cap.
constexpr size_t kFramesShare = 32;
constexpr size_t kMaxFrameBytes = size_t{64} << 20;

uint64_t SegmentBytes(const StoreOptions& options, uint64_t disk_bytes) {
  if (options.segment_bytes != 0)
    return options.segment_bytes / kRecordAlignment * kRecordAlignment;
  const uint64_t share = disk_bytes / 16 / kRecordAlignment * kRecordAlignment;
  return std::clamp(share, kMinSegmentBytes, limits::kMaxSegmentBytes);
}

}  // namespace

// What is gathered over all segments before it can be applied.
struct StoreImpl::Recovery {
  struct State {
    uint64_t sequence = 0;
    int64_t expires_ms = 0;  // wall clock
    uint32_t lasting_pins = 0;
    std::vector<int64_t> timed_pins;  // wall clock
  };
  std::vector<uint64_t> sequences;  // of the record of a slot; 0: it was there before
  std::unordered_map<BlockKey, State, DigestHash> states;
  std::unordered_map<BlockKey, uint64_t, DigestHash> tombstones;
  uint64_t bytes = 0;  // of records so far, the recovered blocks' place in the eviction order
};

StoreImpl::StoreImpl(const StoreOptions& options)
    : options_(options),
      clock_(options.clock),
      segment_bytes_(SegmentBytes(options, options.disk_bytes)),
      budget_(options.memory_bytes),
      disk_budget_(options.disk_bytes),
      frames_(std::min(options.memory_bytes / kFramesShare, kMaxFrameBytes)),
      index_(options.memory_bytes),
      disk_index_(&budget_) {}

StoreImpl::~StoreImpl() {
  if (!writer_.joinable()) return;
  static_cast<void>(Flush());  // a disk that fails was reported when it did
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    writer_wake_.Signal();
  }
  writer_.join();
}

absl::Status StoreImpl::OpenDisk() {
  if (segment_bytes_ < kMinSegmentBytes || segment_bytes_ > limits::kMaxSegmentBytes) {
    return absl::InvalidArgumentError(absl::StrCat("segments have ", kMinSegmentBytes, " to ",
                                                   limits::kMaxSegmentBytes, " bytes, not ",
                                                   segment_bytes_));
  }
  if (options_.disk_bytes < limits::kMinSegments * segment_bytes_) {
    return absl::InvalidArgumentError(absl::StrCat("the disk tier needs at least ",
                                                   limits::kMinSegments * segment_bytes_,
                                                   " bytes; raise --disk_bytes"));
  }
  const size_t buffer = std::clamp(budget_.capacity() / 16, kMinBufferBytes, kMaxBufferBytes);
  if (!budget_.TryReserve(buffer, &io_reservation_)) {
    return absl::InvalidArgumentError("the disk tier needs memory; raise --memory_bytes");
  }
  io_buffer_.resize(buffer);
  FileSystem& fs = *options_.file_system;
  const absl::Status made = fs.CreateDirectory(options_.disk_dir);
  auto lock = fs.Lock(JoinPath(options_.disk_dir, "LOCK"));
  if (lock.ok()) {
    lock_ = *std::move(lock);
  } else if (!absl::IsPermissionDenied(lock.status())) {
    return made.ok() ? lock.status() : made;
  }
  const int64_t began_ms = Clock::Real()->MonotonicMs();
  LKV_RETURN_IF_ERROR(RecoverSegments());
  FitToFileSystem();
  {
    // The first blocks' share, while there is memory.
    MutexLock lock(mutex_);
    if (!disk_index_.Prepare(64)) {
      return absl::InvalidArgumentError("the disk tier needs memory; raise --memory_bytes");
    }
    counters_.recovery_ms = Clock::Real()->MonotonicMs() - began_ms;
  }
  has_disk_ = true;
  // On a read-only file system what is there is served, and nothing is written.
  if (!lock_) SetMemoryOnly(lock.status());
  writer_ = std::thread([this] { WriterMain(); });
  return absl::OkStatus();
}

void StoreImpl::Settle() {
  const int64_t began_ms = Clock::Real()->MonotonicMs();
  FinishSegments();
  bool writable;
  {
    MutexLock lock(mutex_);
    writable = health_.state == StoreHealth::State::kOk;
  }
  if (writable) {
    const absl::Status opened = EnsureRoom(kRecordHeaderBytes, /*reclaiming=*/false);
    if (!opened.ok()) {
      ForgetRemovedFiles();
      SetMemoryOnly(opened);
    }
  }
  MutexLock lock(mutex_);
  counters_.settle_ms = Clock::Real()->MonotonicMs() - began_ms;
  counters_.settled = true;
}

void StoreImpl::FinishSegments() {
  for (const auto& [segment, records] : std::exchange(unfinished_, {})) {
    if (!records.empty()) {
      WriteFooter(*segment, records);
    } else {
      // Nothing refers to it; one that cannot be removed is looked at again at the next start.
      static_cast<void>(options_.file_system->Remove(segment->path));
    }
  }
}

void StoreImpl::FitToFileSystem() {
  const auto free = options_.file_system->FreeBytes(options_.disk_dir);
  const uint64_t there = free.ok() ? *free + disk_budget_.used() : options_.disk_bytes;
  const uint64_t usable = std::min(options_.disk_bytes, there);
  segment_bytes_ = SegmentBytes(options_, usable);
  reserve_bytes_ = std::min(limits::kDiskReserveBytes, usable / 8);
}

absl::Status StoreImpl::RecoverSegments() {
  LKV_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                       options_.file_system->List(options_.disk_dir));
  Recovery recovery;
  for (const std::string& name : names) {
    const auto id = ParseSegmentFileName(name);
    if (!id) continue;
    next_segment_id_ = std::max(next_segment_id_, *id + 1);
    bool known = false;
    {
      MutexLock lock(mutex_);
      for (const SegmentPtr& segment : segments_) known = known || (segment && segment->id == *id);
    }
    if (!known) LKV_RETURN_IF_ERROR(RecoverSegment(*id, recovery));
  }
  ApplyNotes(recovery);
  return absl::OkStatus();
}

absl::Status StoreImpl::RecoverSegment(uint32_t id, Recovery& recovery) {
  FileSystem& fs = *options_.file_system;
  const std::string path = JoinPath(options_.disk_dir, SegmentFileName(id));
  bool writable = lock_ != nullptr;
  auto file = fs.Open(path, writable ? OpenMode::kReadWrite : OpenMode::kRead);
  if (absl::IsPermissionDenied(file.status()) && writable) {
    writable = false;
    file = fs.Open(path, OpenMode::kRead);
  }
  LKV_RETURN_IF_ERROR(file.status());
  LKV_ASSIGN_OR_RETURN(const uint64_t size, (*file)->Size());
  SegmentHeaderBytes bytes{};
  LKV_RETURN_IF_ERROR((*file)->ReadAt(0, bytes).status());
  const auto header = DecodeSegmentHeader(bytes);
  if (absl::IsFailedPrecondition(header.status())) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": ", std::string(header.status().message())));
  }
  Reservation disk;
  if (!disk_budget_.TryReserve(size, &disk)) {
    return absl::FailedPreconditionError(absl::StrCat("the segments in ", options_.disk_dir,
                                                      " take more than the ", options_.disk_bytes,
                                                      " bytes allowed; raise --disk_bytes"));
  }
  auto segment =
      std::make_shared<Segment>(id, path, *std::move(file), std::move(disk), &read_bytes_);
  segment->sealed = true;
  auto records = ReadFooter(*segment->file, id, size);
  if (absl::IsFailedPrecondition(records.status())) return records.status();
  // A damaged header is one more reason not to believe the index.
  const bool footer = header.ok() && records.ok();
  if (!footer) records = ScanSegment(*segment, size);
  LKV_RETURN_IF_ERROR(records.status());
  if (!footer && writable) unfinished_.emplace_back(segment, *records);
  if (records->empty()) return absl::OkStatus();
  {
    MutexLock lock(mutex_);
    if (!header.ok()) ++counters_.corrupt_dropped;
    LKV_RETURN_IF_ERROR(AddSegment(segment).status());
    // Where the process before this one was killed, nobody knows what of it was synced.
    const FooterEntry& last = records->back();
    segment->end = last.offset + last.record.record_bytes();
    segment->has_footer = footer;
  }
  return IndexRecords(*segment, *records, recovery);
}

absl::StatusOr<std::vector<FooterEntry>> StoreImpl::ScanSegment(Segment& segment, uint64_t size) {
  LKV_ASSIGN_OR_RETURN(ScanResult scan, ScanRecords(*segment.file, segment.id, kSegmentHeaderBytes,
                                                    size, io_buffer_));
  MutexLock lock(mutex_);
  ++counters_.scanned_segments;
  counters_.corrupt_dropped += scan.damaged.size() + scan.gaps;
  return std::move(scan.good);
}

void StoreImpl::WriteFooter(Segment& segment, const std::vector<FooterEntry>& records) {
  const ByteVector footer = EncodeFooter(records, segment.id, segment.end);
  const uint64_t size = segment.end + footer.size();
  if (size > segment.disk.bytes()) return;
  absl::Status status =
      segment.file->WriteAt(0, EncodeSegmentHeader({segment.id, clock_->WallMs()}));
  if (status.ok()) status = segment.file->WriteAt(segment.end, footer);
  if (status.ok()) status = segment.file->Truncate(size);
  if (status.ok()) status = segment.file->Sync();
  MutexLock lock(mutex_);
  if (!status.ok()) {
    segment.failed = true;
    return;
  }
  segment.has_footer = true;
  segment.synced_end = segment.end;
  segment.disk.ShrinkTo(size);
}

absl::Status StoreImpl::IndexRecords(const Segment& segment,
                                     const std::vector<FooterEntry>& records, Recovery& recovery) {
  for (const FooterEntry& entry : records) {
    const RecordHeader& record = entry.record;
    std::vector<int64_t> timed_pins;
    if (record.type == RecordType::kState && record.metadata_bytes > 0) {
      const auto start =
          ReadRecordStart(*segment.file, segment.id, entry.offset, record.record_bytes());
      MutexLock lock(mutex_);
      if (!start.ok()) {
        ++counters_.corrupt_dropped;
        continue;
      }
      ByteReader reader(start->metadata);
      while (reader.remaining() >= sizeof(int64_t)) timed_pins.push_back(reader.Get<int64_t>());
    }
    MutexLock lock(mutex_);
    last_sequence_ = std::max(last_sequence_, record.sequence);
    if (record.type == RecordType::kTombstone) {
      uint64_t& latest = recovery.tombstones[record.key];
      latest = std::max(latest, record.sequence);
      continue;
    }
    if (record.type == RecordType::kState) {
      Recovery::State& state = recovery.states[record.key];
      if (state.sequence < record.sequence) {
        state = {record.sequence, record.expires_ms, record.lasting_pins, std::move(timed_pins)};
      }
      continue;
    }
    const DiskPlace place{segment.number, entry.offset, record.record_bytes()};
    Slot slot = disk_index_.Find(record.key);
    if (slot != kNone) {
      disk_index_.set_has_older(slot);
      if (slot >= recovery.sequences.size() || recovery.sequences[slot] == 0 ||
          recovery.sequences[slot] > record.sequence) {
        continue;
      }
      disk_index_.Move(slot, place, record.quality_rank);
    } else {
      slot = disk_index_.Insert(record.key, record.parent, place, record.quality_rank);
      if (slot == kNone) {
        return absl::ResourceExhaustedError(
            absl::StrCat("the index of the blocks in ", options_.disk_dir,
                         " does not fit into memory; raise --memory_bytes"));
      }
      if (BlockIndex::Entry* in_memory = index_.Find(record.key)) {
        ++in_both_;
        index_.SetOnDisk(*in_memory, in_memory->block->version == record.sequence);
      }
    }
    recovery.bytes += record.record_bytes();
    disk_index_.set_last_used(slot, static_cast<uint32_t>(recovery.bytes >> DiskIndex::kRankShift));
    disk_index_.SetExpiry(slot, MonotonicOf(record.expires_ms));
    disk_index_.SetPins(slot, {record.lasting_pins, {}});
    if (recovery.sequences.size() <= slot) recovery.sequences.resize(slot + 1);
    recovery.sequences[slot] = record.sequence;
  }
  return absl::OkStatus();
}

void StoreImpl::ApplyNotes(Recovery& recovery) {
  Removed removed;
  {
    MutexLock lock(mutex_);
    const auto sequence = [&](Slot slot) {
      return slot < recovery.sequences.size() ? recovery.sequences[slot] : 0;
    };
    for (const auto& [key, ended] : recovery.tombstones) {
      const Slot slot = disk_index_.Find(key);
      if (slot == kNone || sequence(slot) == 0 || sequence(slot) > ended) continue;
      RemoveFromDisk(slot, key, /*tombstone=*/false, removed);
    }
    for (const auto& [key, state] : recovery.states) {
      const Slot slot = disk_index_.Find(key);
      if (slot == kNone || sequence(slot) == 0 || sequence(slot) > state.sequence) continue;
      disk_index_.SetExpiry(slot, MonotonicOf(state.expires_ms));
      PinSet pins{state.lasting_pins, {}};
      for (const int64_t at : state.timed_pins) pins.timed.push_back(MonotonicOf(at));
      disk_index_.SetPins(slot, std::move(pins));
    }
    std::vector<Slot> expired;
    const int64_t now_ms = clock_->MonotonicMs();
    disk_index_.Visit(0, UINT32_MAX, [&](Slot slot) {
      if (sequence(slot) != 0 && disk_index_.ExpiredAt(slot, now_ms)) expired.push_back(slot);
    });
    // Nobody knows them yet, and each start finds them expired again.
    for (const Slot slot : expired) {
      BlockKey key{};
      disk_index_.KeyPrefix(slot, &key);
      if (index_.FindByPrefix(key) == nullptr) disk_index_.Remove(slot);
    }
    counters_.expired_blocks += expired.size();
    index_.clock().Restore(recovery.bytes);
    counters_.recovered_blocks += static_cast<uint64_t>(std::count_if(
        recovery.sequences.begin(), recovery.sequences.end(), [](uint64_t s) { return s != 0; }));
  }
  Announce(removed);
}

}  // namespace latticekv
