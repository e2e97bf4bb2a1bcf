// The end of the newest segment: appending, sealing, opening the next, and a disk that fails.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/store/store_impl.h"

namespace latticekv {
namespace {

// Segments given up to make room for one record, at most.
constexpr int kMaxReclaims = 8;
// The same on a disk that is full below the cap, until a segment could be opened again: something
// else may take what becomes free, and the store must not be emptied for that.
constexpr int kMaxReclaimsOnFullDisk = 4;

constexpr std::array<std::byte, kRecordAlignment> kZeros{};

}  // namespace

absl::Status StoreImpl::Append(const RecordHeader& header, std::span<const ByteSpan> payload,
                               Job& job) {
  const uint64_t bytes = header.record_bytes();
  LKV_RETURN_IF_ERROR(EnsureRoom(bytes, job.reclaiming));
  const uint64_t offset = active_->end;
  const RecordHeaderBytes encoded = EncodeRecordHeader(header, active_->id);
  std::vector<ByteSpan> pieces = {encoded};
  pieces.insert(pieces.end(), payload.begin(), payload.end());
  pieces.push_back(ByteSpan(kZeros).first(header.padding_bytes()));
  const absl::Status written = active_->file->WriteAt(offset, pieces);
  if (!written.ok()) {
    FailActive();
    return written;
  }
  job.segment = active_;
  job.place = {active_->number, offset, bytes};
  active_entries_.push_back({offset, header});
  MutexLock lock(mutex_);
  active_->end += bytes;
  return absl::OkStatus();
}

absl::Status StoreImpl::EnsureRoom(uint64_t bytes, bool reclaiming) {
  for (int reclaims = 0;; ++reclaims) {
    absl::Status opened;
    if (active_ &&
        active_->end + bytes + FooterBytes(active_entries_.size() + 1) > active_capacity_) {
      // A seal that fails leaves the segment without an index; the next is opened all the same.
      static_cast<void>(SealActive());
    }
    if (!active_) opened = OpenSegment(bytes, reclaiming);
    if (reclaiming || reclaims == kMaxReclaims) return opened;
    if (opened.ok() && disk_budget_.used() + segment_bytes_ <= disk_budget_.capacity()) {
      return opened;
    }
    // At the cap a segment goes; reclaim may have used the spare room, and wins it back.
    if (!opened.ok() && !absl::IsFailedPrecondition(opened) &&
        (!absl::IsResourceExhausted(opened) || ++full_reclaims_ > kMaxReclaimsOnFullDisk)) {
      return opened;
    }
    const absl::Status reclaimed = ReclaimOne();
    if (absl::IsNotFound(reclaimed)) return opened;
    LKV_RETURN_IF_ERROR(reclaimed);
  }
}

absl::StatusOr<uint64_t> StoreImpl::ChooseSize(uint64_t bytes, uint64_t spare) {
  const uint64_t needed = kSegmentHeaderBytes + bytes + FooterBytes(2);
  const uint64_t wanted = std::max(segment_bytes_, needed);
  // Segments are allocated ahead: without this they would take the journal's room.
  const auto free = options_.file_system->FreeBytes(options_.disk_dir);
  const uint64_t kept = reserve_bytes_ + spare;
  if (!free.ok() || *free >= wanted + kept) return wanted;
  const uint64_t left = *free - std::min(*free, kept);
  // Smaller ones as well, but not one for every record.
  if (left >= std::max(needed, segment_bytes_ / 4))
    return left / kRecordAlignment * kRecordAlignment;
  return absl::ResourceExhaustedError(absl::StrCat(
      "the file system of ", options_.disk_dir, " is full: ", *free, " bytes are free and ", kept,
      " stay for the journal and for moving blocks; free some, or lower --disk_bytes"));
}

absl::Status StoreImpl::OpenSegment(uint64_t bytes, bool reclaiming) {
  // One segment's room stays for the copies that reclaim makes.
  const uint64_t spare = reclaiming ? 0 : segment_bytes_;
  LKV_ASSIGN_OR_RETURN(const uint64_t size, ChooseSize(bytes, spare));
  Reservation disk;
  if (disk_budget_.used() + size + spare > disk_budget_.capacity() ||
      !disk_budget_.TryReserve(size, &disk)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the disk tier is full: ", disk_budget_.used(), " of ", disk_budget_.capacity(),
        " bytes are in use and no more can be evicted; raise --disk_bytes"));
  }
  FileSystem& fs = *options_.file_system;
  std::unique_ptr<File> file;
  std::string path;
  uint32_t id;
  for (;;) {
    id = next_segment_id_++;
    path = JoinPath(options_.disk_dir, SegmentFileName(id));
    auto opened = fs.Open(path, OpenMode::kCreate);
    if (absl::IsAlreadyExists(opened.status())) continue;
    LKV_RETURN_IF_ERROR(opened.status());
    file = *std::move(opened);
    break;
  }
  const SegmentHeaderBytes header = EncodeSegmentHeader({id, clock_->WallMs()});
  absl::Status status = file->Allocate(size);
  if (status.ok()) status = file->WriteAt(0, header);
  if (status.ok()) status = file->SyncData();
  if (status.ok()) status = fs.SyncDirectory(options_.disk_dir);
  if (!status.ok()) {
    file.reset();
    static_cast<void>(fs.Remove(path));
    return status;
  }
  auto segment = std::make_shared<Segment>(id, std::move(path), std::move(file), std::move(disk),
                                           &read_bytes_);
  segment->synced_end = segment->end;
  {
    MutexLock lock(mutex_);
    LKV_RETURN_IF_ERROR(AddSegment(segment).status());
  }
  active_ = std::move(segment);
  full_reclaims_ = 0;
  active_capacity_ = size;
  active_entries_.clear();
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> StoreImpl::AddSegment(SegmentPtr segment) {
  const auto free = std::find(segments_.begin(), segments_.end(), nullptr);
  const auto number = static_cast<uint32_t>(free - segments_.begin());
  if (number >= DiskIndex::kMaxSegments) {
    return absl::FailedPreconditionError(
        "the disk tier has as many segments as its index can name; use a smaller --disk_bytes");
  }
  segment->number = number;
  if (free == segments_.end()) {
    segments_.push_back(std::move(segment));
  } else {
    *free = std::move(segment);
  }
  return number;
}

absl::Status StoreImpl::SealActive() {
  const SegmentPtr segment = active_;
  FileSystem& fs = *options_.file_system;
  if (active_entries_.empty()) {
    // Nothing refers to it.
    active_.reset();
    {
      MutexLock lock(mutex_);
      segments_[segment->number] = nullptr;
    }
    LKV_RETURN_IF_ERROR(fs.Remove(segment->path));
    return fs.SyncDirectory(options_.disk_dir);
  }
  const ByteVector footer = EncodeFooter(active_entries_, segment->id, segment->end);
  const uint64_t size = segment->end + footer.size();
  absl::Status status = segment->file->WriteAt(segment->end, footer);
  if (status.ok()) status = segment->file->Truncate(size);
  if (status.ok()) status = segment->file->Sync();
  if (!status.ok()) {
    FailActive();
    return status;
  }
  active_.reset();
  active_entries_.clear();
  MutexLock lock(mutex_);
  ++counters_.syncs;
  segment->synced_end = segment->end;
  segment->sealed = segment->has_footer = true;
  segment->disk.ShrinkTo(size);
  return absl::OkStatus();
}

absl::Status StoreImpl::SyncActive() {
  if (!active_ || active_->synced_end == active_->end) return absl::OkStatus();
  absl::Status status = active_->file->SyncData();
  // A file that was removed syncs well, and is gone all the same.
  if (status.ok() && !CheckDirectory()) {
    return absl::UnavailableError(
        absl::StrCat("the files in ", options_.disk_dir, " were removed; put the directory back"));
  }
  if (!status.ok()) {
    FailActive();
    return status;
  }
  last_sync_ms_ = Clock::Real()->MonotonicMs();
  MutexLock lock(mutex_);
  ++counters_.syncs;
  active_->synced_end = active_->end;
  return absl::OkStatus();
}

void StoreImpl::SyncRecovered(Segment& segment) {
  // Not tried again after a failure: the kernel may have dropped what it could not write.
  if (segment.failed || &segment == active_.get()) return;
  const absl::Status status = segment.file->SyncData();
  MutexLock lock(mutex_);
  if (status.ok()) {
    ++counters_.syncs;
    segment.synced_end = segment.end;
  } else {
    ++counters_.disk_errors;
    segment.failed = true;
  }
}

void StoreImpl::FailActive() {
  const SegmentPtr segment = std::exchange(active_, nullptr);
  const std::vector<FooterEntry> entries = std::exchange(active_entries_, {});
  MutexLock lock(mutex_);
  ++counters_.disk_errors;
  segment->sealed = segment->failed = true;
  // What was written since the last sync may not be there: blocks that memory still has count as
  // not written; of the others the checksums tell.
  for (const FooterEntry& entry : entries) {
    if (entry.offset < segment->synced_end || entry.record.type != RecordType::kBlock) continue;
    const Slot slot = disk_index_.Find(entry.record.key);
    BlockIndex::Entry* in_memory = index_.Find(entry.record.key);
    if (slot == kNone || in_memory == nullptr || !in_memory->on_disk) continue;
    const DiskPlace place{segment->number, entry.offset, entry.record.record_bytes()};
    if (disk_index_.PlaceOf(slot) == place) index_.SetOnDisk(*in_memory, false);
  }
}

void StoreImpl::SetMemoryOnly(const absl::Status& why) {
  if (active_) FailActive();
  MutexLock lock(mutex_);
  health_.state = StoreHealth::State::kMemoryOnly;
  health_.reason = absl::StrCat("the disk takes no writes, blocks stay in memory only: ",
                                std::string(why.message()));
  next_probe_ms_ = Clock::Real()->MonotonicMs() + options_.disk_retry_ms;
  urgent_.clear();
  flush_.clear();
}

bool StoreImpl::CheckDirectory() {
  const auto linked = active_->file->IsLinked();
  if (linked.ok() && *linked) return true;
  ForgetRemovedFiles();
  return false;
}

void StoreImpl::ForgetRemovedFiles() {
  std::vector<SegmentPtr> segments;
  {
    MutexLock lock(mutex_);
    segments = segments_;
  }
  for (const SegmentPtr& segment : segments) {
    if (!segment) continue;
    const auto linked = segment->file->IsLinked();
    if (linked.ok() && *linked) continue;
    directory_lost_ = true;
    ForgetSegment(segment);
    if (segment != active_) continue;
    active_.reset();
    active_entries_.clear();
  }
}

void StoreImpl::ForgetSegment(const SegmentPtr& segment) {
  // Its bytes can still be read until it is closed, and tell the keys.
  std::vector<FooterEntry> records;
  if (segment == active_) {
    records = active_entries_;
  } else if (auto read = RecordsOf(*segment); read.ok()) {
    records = *std::move(read);
  }
  Removed removed;
  {
    MutexLock lock(mutex_);
    for (const FooterEntry& record : records) {
      if (record.record.type != RecordType::kBlock) continue;
      const Slot slot = disk_index_.Find(record.record.key);
      const DiskPlace place{segment->number, record.offset, record.record.record_bytes()};
      if (slot == kNone || disk_index_.PlaceOf(slot) != place) continue;
      const bool in_memory = index_.Find(record.record.key) != nullptr;
      RemoveFromDisk(slot, record.record.key, /*tombstone=*/false, removed);
      if (in_memory) continue;
      ++counters_.lost_blocks;
      removed.keys.emplace_back(record.record.key, RemovalReason::kLost);
    }
    DropSlotsOf(segment->number, removed);
    segments_[segment->number] = nullptr;
  }
  Announce(removed);
}

void StoreImpl::DropSlotsOf(uint32_t number, Removed& removed) {
  std::vector<Slot> slots;
  disk_index_.Visit(0, UINT32_MAX, [&](Slot slot) {
    if (disk_index_.PlaceOf(slot).segment == number) slots.push_back(slot);
  });
  for (const Slot slot : slots) {
    BlockKey key{};
    disk_index_.KeyPrefix(slot, &key);
    const BlockIndex::Entry* entry = index_.FindByPrefix(key);
    if (entry != nullptr) key = entry->block->key;
    RemoveFromDisk(slot, key, /*tombstone=*/false, removed);
    if (entry == nullptr) ++counters_.lost_blocks;
  }
}

void StoreImpl::ProbeDisk() {
  absl::Status status;
  ForgetRemovedFiles();
  if (directory_lost_ || !lock_) {
    // Another daemon may have taken the directory meanwhile.
    lock_.reset();
    auto lock = options_.file_system->Lock(JoinPath(options_.disk_dir, "LOCK"));
    status = lock.status();
    if (lock.ok()) {
      lock_ = *std::move(lock);
      status = RecoverSegments();
      FinishSegments();
      directory_lost_ = !status.ok();
    }
  }
  if (status.ok()) status = EnsureRoom(kRecordHeaderBytes, /*reclaiming=*/false);
  if (!status.ok()) {
    SetMemoryOnly(status);
    return;
  }
  MutexLock lock(mutex_);
  health_ = StoreHealth();
}

}  // namespace latticekv
