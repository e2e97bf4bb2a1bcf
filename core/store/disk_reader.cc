// Reading blocks back from disk.
#include "absl/strings/str_cat.h"
#include "core/base/crc32c.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/store/store_impl.h"

namespace latticekv {
namespace {

StoredBlock BlockOf(const RecordHeader& header, ByteVector metadata) {
  StoredBlock block;
  block.key = header.key;
  block.parent = header.parent;
  block.depth_tokens = header.depth_tokens;
  block.metadata = std::move(metadata);
  block.quality_rank = header.quality_rank;
  block.version = header.sequence;
  block.frame_bytes = header.frame_bytes;
  return block;
}

}  // namespace

absl::Status StoredBlock::ReadFrame(uint64_t offset, MutableByteSpan out) const {
  if (offset > frame_bytes || out.size() > frame_bytes - offset) {
    return absl::DataLossError(absl::StrCat("the frame has ", frame_bytes, " bytes, and bytes ",
                                            offset, " to ", offset + out.size(),
                                            " were asked for; the block is damaged"));
  }
  if (source) return source->Read(offset, out);
  std::copy_n(frame.begin() + static_cast<ptrdiff_t>(offset), out.size(), out.begin());
  return absl::OkStatus();
}

absl::StatusOr<StoredBlockPtr> StoreImpl::ReadDescription(const DiskRef& ref) {
  LKV_ASSIGN_OR_RETURN(RecordStart start, ReadRecordStart(*ref.segment->file, ref.segment->id,
                                                          ref.place.offset, ref.place.bytes));
  if (start.header.type != RecordType::kBlock) {
    return absl::DataLossError("the record is of another type");
  }
  StoredBlock block = BlockOf(start.header, std::move(start.metadata));
  block.source = std::make_shared<SegmentFrame>(ref.segment, ref.place.offset, start.header);
  return std::make_shared<const StoredBlock>(std::move(block));
}

StoredBlockPtr StoreImpl::Describe(const BlockKey& key, const DiskRef& ref) {
  auto block = ReadDescription(ref);
  if (block.ok() && (*block)->key == key) return *std::move(block);
  if (block.ok() || absl::IsDataLoss(block.status())) {
    Removed removed;
    {
      MutexLock lock(mutex_);
      DropDamaged(key, ref.place, removed);
    }
    Announce(removed);
  } else {
    MutexLock lock(mutex_);
    ++counters_.disk_errors;
  }
  return nullptr;
}

StoredBlockPtr StoreImpl::DescribeAt(const DiskRef& ref) {
  auto block = ReadDescription(ref);
  if (block.ok()) return *std::move(block);
  // Its next reader knows the key and drops it.
  return nullptr;
}

absl::StatusOr<StoredBlockPtr> StoreImpl::ReadWhole(const DiskRef& ref, Reservation reservation) {
  File& file = *ref.segment->file;
  LKV_ASSIGN_OR_RETURN(RecordStart start,
                       ReadRecordStart(file, ref.segment->id, ref.place.offset, ref.place.bytes));
  const RecordHeader& header = start.header;
  if (header.type != RecordType::kBlock) {
    return absl::DataLossError("the record is of another type");
  }
  // Frame and padding in one read.
  ByteVector frame(header.frame_bytes + header.padding_bytes());
  LKV_RETURN_IF_ERROR(
      ReadExactly(file, ref.place.offset + kRecordHeaderBytes + header.metadata_bytes, frame));
  for (size_t i = header.frame_bytes; i < frame.size(); ++i) {
    if (frame[i] != std::byte{0}) return absl::DataLossError("the record's padding is damaged");
  }
  frame.resize(header.frame_bytes);
  if (Crc32c(frame) != header.frame_crc) return absl::DataLossError("the frame is damaged");
  StoredBlock block = BlockOf(header, std::move(start.metadata));
  block.frame = std::move(frame);
  reservation.ShrinkTo(EntryBytes(block.frame_bytes, block.metadata.size()));
  block.reservation = std::move(reservation);
  return std::make_shared<const StoredBlock>(std::move(block));
}

StoredBlockPtr StoreImpl::Promote(const BlockKey& key, const DiskRef& ref) {
  // What is read is at most the record, and the share of the index.
  auto reservation = Reserve(EntryBytes(ref.place.bytes, 0));
  if (!reservation.ok()) return Describe(key, ref);
  auto read = ReadWhole(ref, *std::move(reservation));
  if (read.ok() && (*read)->key != key) read = absl::DataLossError("the record has another key");
  Removed removed;
  StoredBlockPtr out;
  {
    MutexLock lock(mutex_);
    if (!read.ok()) {
      if (absl::IsDataLoss(read.status())) {
        DropDamaged(key, ref.place, removed);
      } else {
        ++counters_.disk_errors;
      }
    } else if (const BlockIndex::Entry* entry = index_.Find(key)) {
      out = entry->block;
    } else {
      out = *std::move(read);
      const Slot slot = disk_index_.Find(key);
      // Deleted or replaced meanwhile: what was read was right when it was asked for, and is not
      // kept. A copy that reclaim made is the same block.
      if (slot != kNone && RefOf(slot).place.bytes == ref.place.bytes &&
          disk_index_.quality_rank(slot) == out->quality_rank) {
        index_.SetOnDisk(InsertInMemory(out), true);
        ++counters_.promoted_blocks;
      }
    }
  }
  Announce(removed);
  return out;
}

StoredBlockPtr StoreImpl::Fetch(const BlockKey& key, bool count) {
  for (;;) {
    Removed removed;
    StoredBlockPtr out;
    std::optional<DiskRef> ref;
    bool again = false;
    {
      MutexLock lock(mutex_);
      Advance(removed);
      if (BlockIndex::Entry* entry = index_.Find(key)) {
        if (count) index_.Use(*entry);
        out = entry->block;
      } else if (reading_.contains(key)) {
        read_done_.Wait(mutex_);
        again = true;
      } else if (const Slot slot = FindOrExpire(key, removed); slot != kNone) {
        ref = RefOf(slot);
        reading_.insert(key);
      }
      if (count && !again) ++(out || ref ? counters_.hits : counters_.misses);
    }
    Announce(removed);
    if (again) continue;
    if (!ref) return out;
    out = Promote(key, *ref);
    MutexLock lock(mutex_);
    reading_.erase(key);
    read_done_.SignalAll();
    if (count && !out) {
      --counters_.hits;
      ++counters_.misses;
    }
    if (BlockIndex::Entry* entry = index_.Find(key); entry != nullptr && count) {
      index_.Use(*entry);
    }
    return out;
  }
}

StoredBlockPtr StoreImpl::Get(const BlockKey& key) { return Fetch(key, /*count=*/true); }

void StoreImpl::ReadAhead(std::span<const BlockKey> keys) {
  MutexLock lock(mutex_);
  for (const BlockKey& key : keys) {
    if (read_ahead_.size() >= limits::kMaxReadAheadBlocks) break;
    if (index_.Find(key) == nullptr && disk_index_.Find(key) != kNone) {
      read_ahead_.push_back(key);
    }
  }
  if (!read_ahead_.empty()) reader_wake_.SignalAll();
}

void StoreImpl::ReaderMain() {
  for (;;) {
    BlockKey key;
    {
      MutexLock lock(mutex_);
      while (!stop_readers_ && read_ahead_.empty()) reader_wake_.Wait(mutex_);
      if (stop_readers_) return;
      key = read_ahead_.front();
      read_ahead_.pop_front();
    }
    Fetch(key, /*count=*/false);
  }
}

}  // namespace latticekv
