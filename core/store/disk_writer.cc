// The writer's thread: what it takes, in which order, and when it is acknowledged.
#include <algorithm>
#include <unordered_map>

#include "absl/strings/str_cat.h"
#include "core/base/crc32c.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/store/store_impl.h"

namespace latticekv {
namespace {

constexpr int64_t kTickMs = 200;
// Data that nobody waits for is synced after this time.
constexpr int64_t kSyncIntervalMs = 1'000;
constexpr uint32_t kSweepSlots = 65'536;
constexpr size_t kIndexRoomAhead = 64;
// Write-back begins when less than an eighth of memory is free, and keeps the coldest sixteenth, or
// GiB, clean.
constexpr size_t kWriteBackShare = 8;
constexpr size_t kMaxCleanBytes = size_t{1} << 30;

int64_t NowMs() { return Clock::Real()->MonotonicMs(); }

}  // namespace

bool StoreImpl::WaitForWriteBack(std::vector<BlockKey> dirty, int64_t deadline_ms) {
  // The writer's own thread must not wait for itself.
  if (std::this_thread::get_id() == writer_.get_id()) return false;
  urgent_.assign(dirty.begin(), dirty.end());
  writer_wake_.Signal();
  const int64_t left_ms = deadline_ms - NowMs();
  if (left_ms <= 0) return false;
  written_.WaitFor(mutex_, left_ms);
  return NowMs() < deadline_ms;
}

size_t StoreImpl::WriteBackWindow() const {
  return std::min(budget_.capacity() / (2 * kWriteBackShare), kMaxCleanBytes);
}

bool StoreImpl::HasWork() const {
  if (!jobs_.empty() || sync_all_) return true;
  if (!DiskWritable()) return false;
  if (!notes_.empty() || !urgent_.empty() || !flush_.empty()) return true;
  if (budget_.capacity() - budget_.used() >= budget_.capacity() / kWriteBackShare) return false;
  // Not for each block that leaves: half a window at a time.
  for (const BlockKey& key : index_.Coldest(WriteBackWindow() / 2)) {
    if (!index_.Find(key)->on_disk) return true;
  }
  return false;
}

void StoreImpl::AddWriteBack(const std::vector<BlockKey>& keys, size_t limit_bytes, size_t& bytes,
                             std::vector<Job>& batch) {
  for (const BlockKey& key : keys) {
    if (bytes >= limit_bytes) return;
    const BlockIndex::Entry* entry = index_.Find(key);
    if (entry == nullptr || entry->on_disk) continue;
    Job job;
    job.key = key;
    job.block = entry->block;
    bytes += job.block->frame_bytes;
    batch.push_back(std::move(job));
  }
}

void StoreImpl::TakeBatch(std::vector<Job>& batch) {
  size_t bytes = 0;
  for (; !jobs_.empty() && bytes < limits::kWriteBatchBytes; jobs_.pop_front()) {
    bytes += kRecordHeaderBytes + (jobs_.front().block ? jobs_.front().block->frame_bytes : 0);
    batch.push_back(std::move(jobs_.front()));
  }
  if (!DiskWritable()) {
    urgent_.clear();
    flush_.clear();
    return;
  }
  for (; !notes_.empty() && bytes < limits::kWriteBatchBytes; notes_.pop_front()) {
    if (notes_.front().kind == JobKind::kState) states_.erase(notes_.front().key);
    bytes += kRecordHeaderBytes;
    batch.push_back(std::move(notes_.front()));
  }
  for (std::deque<BlockKey>* queue : {&urgent_, &flush_}) {
    while (!queue->empty() && bytes < limits::kWriteBatchBytes) {
      AddWriteBack({queue->front()}, limits::kWriteBatchBytes, bytes, batch);
      queue->pop_front();
    }
  }
  if (budget_.capacity() - budget_.used() < budget_.capacity() / kWriteBackShare) {
    AddWriteBack(index_.Coldest(WriteBackWindow()), limits::kWriteBatchBytes, bytes, batch);
  }
}

void StoreImpl::WriterMain() {
  Settle();
  for (;;) {
    std::vector<Job> batch;
    bool stop = false;
    {
      MutexLock lock(mutex_);
      if (!stopping_ && !HasWork()) writer_wake_.WaitFor(mutex_, kTickMs);
      TakeBatch(batch);
      writing_ = true;
      stop = stopping_ && batch.empty();
    }
    WriteBatch(batch);
    batch.clear();  // lets go of the blocks before anybody waits for them to leave
    // What was written makes room for the index of the next.
    MakeIndexRoom(kIndexRoomAhead, /*at_any_price=*/false);
    Tick();
    {
      MutexLock lock(mutex_);
      writing_ = false;
      written_.SignalAll();
    }
    if (stop) break;
  }
  if (active_) static_cast<void>(SealActive());
}

void StoreImpl::MakeIndexRoom(size_t blocks, bool at_any_price) {
  Removed removed;
  {
    MutexLock lock(mutex_);
    // Memory may be full of blocks: the coldest that is on disk too makes room for the index, which
    // is small beside it.
    while (!disk_index_.Prepare(blocks)) {
      const std::vector<BlockKey> coldest = index_.Coldest(4 * WriteBackWindow());
      auto victim = std::find_if(coldest.begin(), coldest.end(),
                                 [&](const BlockKey& key) { return index_.Find(key)->on_disk; });
      if (victim == coldest.end() && at_any_price) victim = coldest.begin();
      if (victim == coldest.end()) break;
      EvictFromMemory({*victim}, removed);
      removed.blocks.clear();
    }
  }
  Announce(removed);
}

void StoreImpl::WriteBatch(std::vector<Job>& batch) {
  size_t durable = 0;
  for (const Job& job : batch) durable += job.durable && job.block ? 1 : 0;
  MakeIndexRoom(durable, /*at_any_price=*/true);
  MakeIndexRoom(batch.size(), /*at_any_price=*/false);
  for (Job& job : batch) {
    if (job.kind != JobKind::kSync) WriteJob(job);
  }
  FinishDurable(batch);
  for (Job& job : batch) {
    if (!job.durable) continue;
    if (job.status.ok()) {
      MutexLock lock(mutex_);
      ++counters_.durable_blocks;
    }
    if (job.done) job.done(job.status);
  }
}

void StoreImpl::WriteJob(Job& job) {
  {
    MutexLock lock(mutex_);
    if (health_.state != StoreHealth::State::kOk) {
      job.status = absl::UnavailableError(health_.reason);
      if (!job.block) notes_.push_back(job);
      return;
    }
    if (job.kind == JobKind::kBlock) {
      const BlockIndex::Entry* entry = index_.Find(job.key);
      if (entry != nullptr && entry->block == job.block && entry->on_disk) {
        job.kind = JobKind::kSync;  // another job wrote it
        return;
      }
      if (entry == nullptr || entry->block->version < job.block->version) {
        job.status = absl::NotFoundError("the block was deleted before it was durable");
        return;
      }
    }
  }
  // A second try goes to another segment.
  for (int attempt = 0; attempt < 2; ++attempt) {
    job.status = WriteOnce(job);
    if (job.status.ok()) break;
  }
  if (job.status.ok()) return Commit(job);
  // That the cap is reached, or a block cannot be stored, says nothing about the disk.
  const std::string why(job.status.message());
  if (absl::IsFailedPrecondition(job.status)) {
    job.status = absl::ResourceExhaustedError(why);
  } else {
    SetMemoryOnly(job.status);
    if (!absl::IsResourceExhausted(job.status)) job.status = absl::UnavailableError(why);
  }
  KeepNote(job);
}

void StoreImpl::KeepNote(const Job& job) {
  if (job.kind != JobKind::kState && job.kind != JobKind::kTombstone) return;
  MutexLock lock(mutex_);
  notes_.push_back(job);
}

absl::Status StoreImpl::WriteOnce(Job& job) {
  RecordHeader header;
  header.key = job.key;
  std::array<ByteSpan, 2> payload;
  ByteVector timed_pins;
  {
    MutexLock lock(mutex_);
    if (job.kind == JobKind::kBlock) {
      if (const BlockIndex::Entry* entry = index_.Find(job.key)) {
        job.expires_ms = entry->expires_ms;
        job.pins = {entry->lasting_pins, {}};
      }
    } else if (job.kind == JobKind::kState) {
      const Slot slot = disk_index_.Find(job.key);
      if (slot == kNone) {
        job.kind = JobKind::kTombstone;
      } else {
        job.sequence = ++last_sequence_;
        job.expires_ms = disk_index_.expires_ms(slot);
        if (const PinSet* pins = disk_index_.Pins(slot)) job.pins = *pins;
      }
    }
  }
  header.sequence = job.kind == JobKind::kBlock ? job.block->version : job.sequence;
  header.expires_ms = WallOf(job.expires_ms);
  header.lasting_pins = job.pins.lasting;
  if (job.kind == JobKind::kBlock) {
    const StoredBlock& block = *job.block;
    if (block.metadata.size() > limits::kMaxMetadataBytes ||
        block.frame.size() > limits::kMaxFrameBytes) {
      return absl::FailedPreconditionError("the block is too large for a record on disk");
    }
    header.parent = block.parent;
    header.depth_tokens = block.depth_tokens;
    header.quality_rank = block.quality_rank;
    payload = {block.metadata, block.frame};
  } else if (job.kind == JobKind::kState) {
    header.type = RecordType::kState;
    ByteWriter writer;
    for (const int64_t lapses_ms : job.pins.timed) writer.Put<int64_t>(WallOf(lapses_ms));
    timed_pins = writer.Take();
    payload = {timed_pins, ByteSpan()};
  } else {
    header.type = RecordType::kTombstone;
  }
  header.metadata_bytes = static_cast<uint32_t>(payload[0].size());
  header.frame_bytes = static_cast<uint32_t>(payload[1].size());
  header.metadata_crc = Crc32c(payload[0]);
  header.frame_crc = Crc32c(payload[1]);
  return Append(header, payload, job);
}

void StoreImpl::Commit(Job& job) {
  if (job.kind != JobKind::kBlock) return;
  MutexLock lock(mutex_);
  ++counters_.written_blocks;
  counters_.written_bytes += job.place.bytes;
  BlockIndex::Entry* entry = index_.Find(job.key);
  Slot slot = disk_index_.Find(job.key);
  if (entry == nullptr) {
    // Deleted, expired or let go while it was written: the record must not come back.
    if (slot == kNone) {
      QueueTombstone(job.key);
      job.status = absl::NotFoundError("the block was deleted before it was durable");
    }
    return;
  }
  if (slot != kNone) {
    disk_index_.Move(slot, job.place, job.block->quality_rank);
    disk_index_.set_has_older(slot);
  } else {
    slot = disk_index_.Insert(job.key, job.block->parent, job.place, job.block->quality_rank);
    if (slot == kNone) {
      job.status = absl::ResourceExhaustedError(
          "there is no memory for the index of blocks on disk; raise --memory_bytes");
      return;
    }
    ++in_both_;
  }
  if (entry->block == job.block) index_.SetOnDisk(*entry, true);
  disk_index_.set_last_used(slot, DiskRank(*entry));
  // What the record says of pins and expiry; a later change is queued.
  disk_index_.SetExpiry(slot, job.expires_ms);
  disk_index_.SetPins(slot, job.pins);
  MirrorState(*entry);
}

void StoreImpl::FinishDurable(std::vector<Job>& batch) {
  const bool wanted = [&] {
    MutexLock lock(mutex_);
    return std::exchange(sync_all_, false);
  }();
  for (int attempt = 0; attempt < 2; ++attempt) {
    bool any = wanted;
    for (const Job& job : batch) any = any || (job.durable && job.status.ok());
    if (!any) return;
    const absl::Status synced = SyncActive();
    bool missing = false;
    for (Job& job : batch) {
      if (!job.durable || !job.status.ok()) continue;
      bool safe = false;
      {
        MutexLock lock(mutex_);
        if (job.kind == JobKind::kSync) {
          const Slot slot = FindOnDisk(job.key);
          if (slot == kNone) {
            const BlockIndex::Entry* entry = FindLive(job.key);
            job.status = absl::NotFoundError("the block was deleted before it was durable");
            if (entry == nullptr) continue;
            // Its segment failed, and memory still has it.
            job.status = absl::OkStatus();
            job.kind = JobKind::kBlock;
            job.block = entry->block;
          } else {
            const DiskRef ref = RefOf(slot);
            job.segment = ref.segment;
            job.place = ref.place;
            if (const BlockIndex::Entry* entry = FindLive(job.key)) job.block = entry->block;
          }
        }
        safe = IsSafe(job);
      }
      if (!safe && job.kind == JobKind::kSync && job.segment) {
        SyncRecovered(*job.segment);
        // One that only this segment holds is read back to be written elsewhere.
        const StoredBlockPtr block =
            job.segment->failed ? Promote(job.key, {job.segment, job.place}) : nullptr;
        MutexLock lock(mutex_);
        safe = IsSafe(job);
        BlockIndex::Entry* entry = block ? index_.Find(job.key) : nullptr;
        if (entry != nullptr && entry->block == block) {
          index_.SetOnDisk(*entry, false);
          job.block = block;
        }
      }
      if (safe) continue;
      missing = true;
      if (attempt == 1 || !job.block) {
        job.status = synced.ok() ? absl::UnavailableError(
                                       "the block's segment failed before it "
                                       "was synced; put it again")
                                 : absl::UnavailableError(synced.message());
        continue;
      }
      // The sync failed, so the record may not be there: write it again elsewhere.
      job.kind = JobKind::kBlock;
      job.segment.reset();
      WriteJob(job);
      if (job.kind == JobKind::kSync && job.status.ok()) missing = true;
    }
    if (!missing) return;
    if (attempt == 1 && !synced.ok()) SetMemoryOnly(synced);
  }
}

void StoreImpl::SweepExpired() {
  std::vector<std::pair<DiskRef, Slot>> expired;
  {
    MutexLock lock(mutex_);
    const int64_t now_ms = clock_->MonotonicMs();
    sweep_ = disk_index_.Visit(sweep_, kSweepSlots, [&](Slot slot) {
      if (disk_index_.ExpiredAt(slot, now_ms)) expired.emplace_back(RefOf(slot), slot);
    });
  }
  for (const auto& [ref, slot] : expired) {
    // The key for the listener is in the record.
    auto block = ReadDescription(ref);
    if (!block.ok()) continue;
    Removed removed;
    {
      MutexLock lock(mutex_);
      Advance(removed);
      FindOrExpire((*block)->key, removed);
    }
    Announce(removed);
  }
}

void StoreImpl::Tick() {
  const int64_t now_ms = NowMs();
  if (now_ms - last_check_ms_ >= kTickMs) {
    last_check_ms_ = now_ms;
    Removed removed;
    {
      MutexLock lock(mutex_);
      Advance(removed);
    }
    Announce(removed);
    SweepExpired();
    if (active_ && !CheckDirectory()) {
      SetMemoryOnly(absl::UnavailableError(absl::StrCat("the files in ", options_.disk_dir,
                                                        " were removed; put the directory back")));
    }
  }
  bool ok;
  {
    MutexLock lock(mutex_);
    ok = health_.state == StoreHealth::State::kOk;
  }
  if (!ok && now_ms >= next_probe_ms_) {
    ProbeDisk();
    next_probe_ms_ = NowMs() + options_.disk_retry_ms;
  }
  if (ok && now_ms - last_sync_ms_ >= kSyncIntervalMs) {
    last_sync_ms_ = now_ms;
    // After a failure the next write opens another segment, or says that the disk is gone.
    static_cast<void>(SyncActive());
  }
}

absl::Status StoreImpl::Flush() {
  MutexLock lock(mutex_);
  if (!has_disk_) {
    return absl::FailedPreconditionError(
        "the store has no disk tier; set --disk_dir and --disk_bytes");
  }
  const std::vector<BlockKey> keys = index_.NotOnDisk();
  flush_.insert(flush_.end(), keys.begin(), keys.end());
  sync_all_ = true;
  writer_wake_.Signal();
  while ((!flush_.empty() || sync_all_ || writing_ || !jobs_.empty() || !notes_.empty()) &&
         DiskWritable()) {
    written_.WaitFor(mutex_, kTickMs);
  }
  if (!DiskWritable()) return absl::UnavailableError(health_.reason);
  return absl::OkStatus();
}

}  // namespace latticekv
