// Giving up a segment to make room.
#include <set>

#include "core/base/status_macros.h"
#include "core/store/reclaim_policy.h"
#include "core/store/store_impl.h"

namespace latticekv {
namespace {

bool NoRoom(const absl::Status& status) {
  return absl::IsResourceExhausted(status) || absl::IsFailedPrecondition(status);
}

}  // namespace

SegmentPtr StoreImpl::ChooseSegment(uint32_t& mean_rank) {
  MutexLock lock(mutex_);
  std::vector<SegmentUse> uses(segments_.size());
  SegmentUse all;
  disk_index_.Visit(0, UINT32_MAX, [&](Slot slot) {
    const DiskPlace place = disk_index_.PlaceOf(slot);
    for (SegmentUse* use : {&uses[place.segment], &all}) {
      use->live_bytes += place.bytes;
      use->rank_bytes +=
          static_cast<double>(place.bytes) * static_cast<double>(disk_index_.last_used(slot));
      if (disk_index_.Pins(slot) != nullptr) use->pinned_bytes += place.bytes;
    }
  });
  mean_rank = static_cast<uint32_t>(all.mean_rank());
  std::vector<SegmentUse> candidates;
  std::vector<SegmentPtr> segments;
  for (const SegmentPtr& segment : segments_) {
    if (!segment || !segment->sealed) continue;
    uses[segment->number].file_bytes = segment->disk.bytes();
    candidates.push_back(uses[segment->number]);
    segments.push_back(segment);
  }
  const auto chosen = ChooseSegmentToReclaim(candidates);
  return chosen ? segments[*chosen] : nullptr;
}

absl::StatusOr<std::vector<FooterEntry>> StoreImpl::RecordsOf(const Segment& segment) {
  LKV_ASSIGN_OR_RETURN(const uint64_t size, segment.file->Size());
  if (segment.has_footer) {
    auto footer = ReadFooter(*segment.file, segment.id, size);
    if (footer.ok() || !absl::IsDataLoss(footer.status())) return footer;
  }
  LKV_ASSIGN_OR_RETURN(ScanResult scan, ScanRecords(*segment.file, segment.id, kSegmentHeaderBytes,
                                                    size, io_buffer_));
  return std::move(scan.good);
}

bool StoreImpl::IsPinnedOnDisk(const BlockKey& key) {
  MutexLock lock(mutex_);
  const Slot slot = disk_index_.Find(key);
  return slot != kNone && disk_index_.CountPins(slot, clock_->MonotonicMs()) > 0;
}

bool StoreImpl::AtPlace(const Segment& segment, const FooterEntry& entry, Slot* slot) const {
  *slot = disk_index_.Find(entry.record.key);
  if (*slot == kNone || entry.record.type != RecordType::kBlock) return false;
  const DiskPlace place{segment.number, entry.offset, entry.record.record_bytes()};
  return disk_index_.PlaceOf(*slot) == place;
}

std::vector<FooterEntry> StoreImpl::ChooseRecords(const Segment& segment,
                                                  const std::vector<FooterEntry>& records,
                                                  uint32_t mean_rank,
                                                  std::vector<FooterEntry>& dropped) {
  std::vector<FooterEntry> live, kept;
  std::vector<RecordUse> uses;
  MutexLock lock(mutex_);
  const int64_t now_ms = clock_->MonotonicMs();
  for (const FooterEntry& entry : records) {
    Slot slot;
    if (!AtPlace(segment, entry, &slot)) continue;
    live.push_back(entry);
    const uint64_t bytes = entry.record.record_bytes();
    if (disk_index_.ExpiredAt(slot, now_ms)) {
      uses.push_back({bytes, 0, false, false});
      continue;
    }
    uint32_t rank = disk_index_.last_used(slot);
    // One in memory is at least as much in use as the order there says.
    if (const BlockIndex::Entry* in_memory = index_.Find(entry.record.key)) {
      rank = std::max(rank, DiskRank(*in_memory));
    }
    uses.push_back(
        {bytes, rank, disk_index_.CountPins(slot, now_ms) > 0, disk_index_.has_children(slot)});
  }
  const std::vector<bool> keep = ChooseRecordsToKeep(uses, segment.disk.bytes(), mean_rank);
  for (size_t i = 0; i < live.size(); ++i) (keep[i] ? kept : dropped).push_back(live[i]);
  return kept;
}

absl::Status StoreImpl::CopyRecord(const Segment& from, const FooterEntry& entry, Job& copy) {
  // Piece by piece, so that a record of any size takes no memory of its own; the
  // header, whose checksum makes it a record, comes last.
  const uint64_t bytes = entry.record.record_bytes();
  LKV_RETURN_IF_ERROR(EnsureRoom(bytes, /*reclaiming=*/true));
  const uint64_t offset = active_->end;
  uint64_t at = offset + kRecordHeaderBytes;
  absl::Status write_error;
  absl::Status status = CheckPayload(*from.file, entry, [&](ByteSpan piece) -> absl::Status {
    write_error = active_->file->WriteAt(at, piece);
    at += piece.size();
    return write_error;
  });
  if (status.ok()) {
    write_error = active_->file->WriteAt(offset, EncodeRecordHeader(entry.record, active_->id));
    status = write_error;
  }
  if (!write_error.ok()) FailActive();
  if (!status.ok()) return status;  // of damage: what was written is overwritten by the next
  copy.segment = active_;
  copy.place = {active_->number, offset, bytes};
  active_entries_.push_back({offset, entry.record});
  MutexLock lock(mutex_);
  active_->end += bytes;
  counters_.copied_bytes += bytes;
  return absl::OkStatus();
}

absl::Status StoreImpl::CopyNotes(const Segment& from, const std::vector<FooterEntry>& records) {
  std::set<BlockKey> seen;
  for (const FooterEntry& entry : records) {
    const RecordHeader& record = entry.record;
    Job note;
    note.key = record.key;
    note.reclaiming = true;
    {
      MutexLock lock(mutex_);
      const Slot slot = disk_index_.Find(record.key);
      if (record.type == RecordType::kTombstone) {
        // As long as an older segment may hold what it ended. A record that is written later than
        // this one never lies in a segment of a lower number.
        bool older = false;
        for (const SegmentPtr& segment : segments_) {
          older = older || (segment && segment.get() != &from && segment->id < from.id);
        }
        if (!older) continue;
        note.kind = JobKind::kTombstone;
        note.sequence = record.sequence;
      } else if (record.type == RecordType::kState) {
        if (slot == kNone || !seen.insert(record.key).second) continue;
        note.kind = JobKind::kState;
      } else {
        continue;
      }
    }
    // The state as it is now.
    const absl::Status written = WriteOnce(note);
    if (NoRoom(written)) {
      KeepNote(note);
    } else if (!written.ok()) {
      return written;
    }
  }
  return absl::OkStatus();
}

absl::Status StoreImpl::ReclaimOne() {
  uint32_t mean_rank = 0;
  const SegmentPtr segment = ChooseSegment(mean_rank);
  if (!segment) return absl::NotFoundError("there is no segment to give up");
  LKV_ASSIGN_OR_RETURN(const std::vector<FooterEntry> records, RecordsOf(*segment));
  std::vector<FooterEntry> dropped;
  std::vector<std::pair<FooterEntry, Job>> copies;
  for (const FooterEntry& entry : ChooseRecords(*segment, records, mean_rank, dropped)) {
    Job copy;
    const absl::Status copied = CopyRecord(*segment, entry, copy);
    if (absl::IsDataLoss(copied)) {
      Removed removed;
      {
        MutexLock lock(mutex_);
        DropDamaged(entry.record.key, {segment->number, entry.offset, entry.record.record_bytes()},
                    removed);
      }
      Announce(removed);
      continue;
    }
    if (NoRoom(copied) && !IsPinnedOnDisk(entry.record.key)) {
      // On a full disk there may be no room for the copy: then it goes.
      dropped.push_back(entry);
      continue;
    }
    LKV_RETURN_IF_ERROR(copied);
    copies.emplace_back(entry, std::move(copy));
  }
  LKV_RETURN_IF_ERROR(CopyNotes(*segment, records));
  // The copies are safe before what they were copied from goes.
  LKV_RETURN_IF_ERROR(SyncActive());
  Removed removed;
  {
    MutexLock lock(mutex_);
    for (const auto& [entry, copy] : copies) {
      if (copy.segment->synced_end >= copy.place.offset + copy.place.bytes) continue;
      return absl::UnavailableError("the copies of a segment's records could not be synced");
    }
    for (const auto& [entry, copy] : copies) {
      Slot slot;
      if (!AtPlace(*segment, entry, &slot)) continue;
      disk_index_.Move(slot, copy.place, entry.record.quality_rank);
    }
    for (const FooterEntry& entry : dropped) {
      Slot slot;
      if (!AtPlace(*segment, entry, &slot)) continue;
      const bool in_memory = index_.Find(entry.record.key) != nullptr;
      RemoveFromDisk(slot, entry.record.key, disk_index_.has_older(slot), removed);
      ++counters_.disk_evicted_blocks;
      if (!in_memory) removed.keys.emplace_back(entry.record.key, RemovalReason::kEvicted);
    }
    DropSlotsOf(segment->number, removed);
    segments_[segment->number] = nullptr;
    ++counters_.reclaimed_segments;
    counters_.reclaimed_bytes += segment->disk.bytes();
  }
  Announce(removed);
  FileSystem& fs = *options_.file_system;
  LKV_RETURN_IF_ERROR(fs.Remove(segment->path));
  return fs.SyncDirectory(options_.disk_dir);
}

}  // namespace latticekv
