// Reading blocks back from disk.
#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/store/store_impl.h"

namespace latticekv {
namespace {

// Descriptions read in one batch: a few MiB of buffers.
constexpr size_t kDescribeAtOnce = 256;
// Of a block's description.
constexpr size_t kUsualMetadataBytes = 4096;

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

std::vector<StoreImpl::Description> StoreImpl::ReadDescriptions(std::span<const DiskRef> refs) {
  std::vector<ByteVector> starts;
  std::vector<FileRead> reads;
  for (const DiskRef& ref : refs) {
    ByteVector& start = starts.emplace_back(RecordStartBytes(ref.place.bytes));
    reads.push_back({ref.segment->file.get(), ref.place.offset, start, 0, {}});
    read_bytes_ += start.size();
  }
  options_.file_system->ReadBatch(reads);
  const auto parse = [&](size_t i) -> Description {
    LKV_RETURN_IF_ERROR(reads[i].status);
    const DiskRef& ref = refs[i];
    starts[i].resize(reads[i].got);
    LKV_ASSIGN_OR_RETURN(RecordStart start,
                         ParseRecordStart(*ref.segment->file, ref.segment->id, ref.place.offset,
                                          ref.place.bytes, std::move(starts[i])));
    if (start.header.type != RecordType::kBlock) {
      return absl::DataLossError("the record is of another type");
    }
    StoredBlock block = BlockOf(start.header, std::move(start.metadata));
    block.source = std::make_shared<SegmentFrame>(ref.segment, ref.place.offset, start.header,
                                                  std::move(start.head));
    return std::make_shared<const StoredBlock>(std::move(block));
  };
  std::vector<Description> out;
  for (size_t i = 0; i < refs.size(); ++i) out.push_back(parse(i));
  return out;
}

StoredBlockPtr StoreImpl::Checked(const BlockKey& key, const DiskRef& ref, Description described) {
  if (described.ok() && (*described)->key == key) return *std::move(described);
  if (described.ok() || absl::IsDataLoss(described.status())) {
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

std::vector<StoredBlockPtr> StoreImpl::PeekMany(std::span<const BlockKey> keys) {
  std::vector<StoredBlockPtr> out(keys.size());
  for (size_t first = 0; first < keys.size(); first += kDescribeAtOnce) {
    Removed removed;
    std::vector<DiskRef> refs;
    std::vector<size_t> places;
    {
      MutexLock lock(mutex_);
      Advance(removed);
      for (size_t i = first; i < std::min(keys.size(), first + kDescribeAtOnce); ++i) {
        if (const BlockIndex::Entry* entry = index_.Find(keys[i])) {
          out[i] = entry->block;
        } else if (const Slot slot = FindOrExpire(keys[i], removed); slot != kNone) {
          refs.push_back(RefOf(slot));
          places.push_back(i);
        }
      }
    }
    Announce(removed);
    std::vector<Description> described = ReadDescriptions(refs);
    for (size_t i = 0; i < places.size(); ++i) {
      out[places[i]] = Checked(keys[places[i]], refs[i], std::move(described[i]));
    }
  }
  return out;
}

uint32_t StoreImpl::VisitDisk(uint32_t cursor, uint32_t count,
                              const std::function<void(const StoredBlockPtr&)>& visit) {
  std::vector<DiskRef> refs;
  {
    MutexLock lock(mutex_);
    const int64_t now_ms = clock_->MonotonicMs();
    cursor = disk_index_.Visit(cursor, count, [&](Slot slot) {
      if (!disk_index_.ExpiredAt(slot, now_ms)) refs.push_back(RefOf(slot));
    });
  }
  // Of a damaged one the next reader knows the key, and drops it.
  for (const Description& block : ReadDescriptions(refs)) {
    if (block.ok()) visit(*block);
  }
  return cursor;
}

absl::StatusOr<StoredBlockPtr> StoreImpl::ReadWhole(const DiskRef& ref, ByteVector buffer,
                                                    Reservation reservation) {
  read_bytes_ += ref.place.bytes;
  LKV_ASSIGN_OR_RETURN(WholeRecord record,
                       ReadRecord(*ref.segment->file, ref.segment->id, ref.place.offset,
                                  ref.place.bytes, std::move(buffer)));
  if (record.header.type != RecordType::kBlock) {
    return absl::DataLossError("the record is of another type");
  }
  StoredBlock block = BlockOf(record.header, std::move(record.metadata));
  block.frame = std::move(record.frame);
  // The cap counts what the frame's buffer has, used or not.
  size_t bytes = EntryBytes(block.frame.capacity(), block.metadata.size());
  if (bytes > reservation.bytes()) {
    block.frame.shrink_to_fit();
    bytes = EntryBytes(block.frame.capacity(), block.metadata.size());
  }
  reservation.ShrinkTo(bytes);
  block.reservation = std::move(reservation);
  return Share(std::move(block));
}

StoredBlockPtr StoreImpl::Promote(const BlockKey& key, const DiskRef& ref) {
  // What is read is at most the record, and the share of the index.
  ByteVector buffer;
  size_t needed = EntryBytes(ref.place.bytes, 0);
  if (ref.place.bytes >= BufferPool::kLeastBytes) {
    buffer = frames_.Take(ref.place.bytes);
    needed = EntryBytes(buffer.capacity(), kUsualMetadataBytes);
  }
  auto reservation = Reserve(needed);
  if (!reservation.ok()) {
    frames_.Give(std::move(buffer));
    return Describe(key, ref);
  }
  auto read = ReadWhole(ref, std::move(buffer), *std::move(reservation));
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

StoredBlockPtr StoreImpl::Get(const BlockKey& key) {
  for (;;) {
    Removed removed;
    StoredBlockPtr out;
    std::optional<DiskRef> ref;
    bool again = false;
    {
      MutexLock lock(mutex_);
      Advance(removed);
      if (BlockIndex::Entry* entry = index_.Find(key)) {
        index_.Use(*entry);
        out = entry->block;
      } else if (reading_.contains(key)) {
        read_done_.Wait(mutex_);
        again = true;
      } else if (const Slot slot = FindOrExpire(key, removed); slot != kNone) {
        ref = RefOf(slot);
        reading_.insert(key);
      }
      if (!again) ++(out || ref ? counters_.hits : counters_.misses);
    }
    Announce(removed);
    if (again) continue;
    if (!ref) return out;
    out = Promote(key, *ref);
    MutexLock lock(mutex_);
    reading_.erase(key);
    read_done_.SignalAll();
    if (!out) {
      --counters_.hits;
      ++counters_.misses;
    }
    if (BlockIndex::Entry* entry = index_.Find(key)) index_.Use(*entry);
    return out;
  }
}

}  // namespace latticekv
