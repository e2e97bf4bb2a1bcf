// The store behind TieredStore: an index of blocks in memory, an index of records on disk, and the
// threads between the two. One lock guards both indexes; no file is touched while it is held.
#ifndef LATTICEKV_CORE_STORE_STORE_IMPL_H_
#define LATTICEKV_CORE_STORE_STORE_IMPL_H_

#include <algorithm>
#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/base/buffer_pool.h"
#include "core/base/mutex.h"
#include "core/store/block_index.h"
#include "core/store/disk_index.h"
#include "core/store/segment.h"
#include "core/store/tiered_store.h"

namespace latticekv {

class StoreImpl : public TieredStore {
 public:
  explicit StoreImpl(const StoreOptions& options);
  ~StoreImpl() override;
  // Recovers the directory and starts the threads; once, before anything else. recovery.cc.
  absl::Status OpenDisk();

  absl::StatusOr<Reservation> Reserve(size_t bytes) override;
  absl::StatusOr<PutResult> Put(StoredBlock block, PutOptions options) override;
  void MakeDurable(const BlockKey& key, DurableCallback done) override;
  bool Contains(const BlockKey& key) const override;
  StoredBlockPtr Peek(const BlockKey& key) override;
  std::vector<StoredBlockPtr> PeekMany(std::span<const BlockKey> keys) override;
  StoredBlockPtr Get(const BlockKey& key) override;
  std::vector<StoredBlockPtr> Children(const BlockKey& parent) override;
  bool HasChildren(const BlockKey& parent) const override;
  bool Touch(const BlockKey& key) override;
  absl::Status Pin(const BlockKey& key, int64_t ttl_ms) override;
  absl::Status Unpin(const BlockKey& key) override;
  absl::Status SetTtl(const BlockKey& key, int64_t ttl_ms) override;
  bool Delete(const BlockKey& key) override;
  bool DropCorrupt(const StoredBlockPtr& block) override;
  void List(const std::optional<BlockKey>& after, size_t limit,
            const std::function<bool(const StoredBlockPtr&)>& visit) override;
  bool IsPinned(const BlockKey& key) override;
  uint32_t VisitDisk(uint32_t cursor, uint32_t count,
                     const std::function<void(const StoredBlockPtr&)>& visit) override;
  StoreStats Stats() override;
  StoreHealth Health() const override;
  absl::Status Flush() override;
  absl::StatusOr<ScrubReport> Scrub(
      const ScrubOptions& options,
      const std::function<bool(const ScrubReport&)>& progress) override;
  void SetRemovalListener(RemovalListener listener) override {
    MutexLock lock(mutex_);  // the store's threads run already
    listener_ = std::make_shared<const RemovalListener>(std::move(listener));
  }

 private:
  using Slot = DiskIndex::Slot;
  static constexpr Slot kNone = DiskIndex::kNone;

  // What left the indexes while the lock was held: announced and released once it is not.
  struct Removed {
    std::vector<std::pair<BlockKey, RemovalReason>> keys;
    std::vector<StoredBlockPtr> blocks;
    std::vector<SegmentPtr> segments;
  };
  void Announce(Removed& removed);

  // A record on disk, for use without the lock.
  struct DiskRef {
    SegmentPtr segment;
    DiskPlace place;
  };

  // Blocks of a list by the part of their keys that the disk index has; those that are on disk only
  // without a pointer.
  using ListPage = std::map<BlockKey, std::pair<StoredBlockPtr, DiskRef>>;
  static BlockKey PrefixKey(BlockKey key) {
    std::fill(key.begin() + 16, key.end(), std::byte{0});
    return key;
  }

  // Something for the writer to do.
  enum class JobKind : uint8_t { kBlock, kState, kTombstone, kSync };
  struct Job {
    JobKind kind = JobKind::kBlock;
    BlockKey key{};
    StoredBlockPtr block;  // kBlock
    bool durable = false;
    DurableCallback done;
    // Set by the writer.
    SegmentPtr segment;
    DiskPlace place;
    absl::Status status;
    bool reclaiming = false;
    uint64_t sequence = 0;   // kTombstone
    int64_t expires_ms = 0;  // as in the record: monotonic
    PinSet pins;
  };

  // --- tiered_store.cc, disk_state.cc: under the lock.
  bool Present(const BlockKey& key) const LKV_REQUIRES(mutex_);
  // Takes `done` along and gives it to the writer, or gives the answer that there is at once.
  std::optional<absl::Status> QueueDurable(const BlockKey& key, DurableCallback& done)
      LKV_REQUIRES(mutex_);
  bool DiskHasRoomForPin(Slot slot) const LKV_REQUIRES(mutex_);
  // The `limit` first after `after` of those that are on disk, if they are not in `page` already.
  void AddDiskPage(const std::optional<BlockKey>& after, size_t limit, ListPage& page) const
      LKV_REQUIRES(mutex_);
  // Lets time pass: pins lapse, blocks expire.
  void Advance(Removed& removed) LKV_REQUIRES(mutex_);
  BlockIndex::Entry* FindLive(const BlockKey& key) const LKV_REQUIRES(mutex_);
  // The record of a block that has not expired; kNone without one.
  Slot FindOnDisk(const BlockKey& key) const LKV_REQUIRES(mutex_);
  // As FindOnDisk; an expired one goes to `removed`.
  Slot FindOrExpire(const BlockKey& key, Removed& removed) LKV_REQUIRES(mutex_);
  absl::Status Full(size_t bytes) LKV_REQUIRES(mutex_);
  absl::Status PinnedFull(std::string_view what, uint64_t capacity) const;
  // 0 for a `ttl_ms` of 0.
  int64_t Deadline(int64_t ttl_ms) const;
  int64_t WallOf(int64_t monotonic_ms) const;
  int64_t MonotonicOf(int64_t wall_ms) const;
  // The block for the index and for readers; its frame's memory comes back when the last lets go.
  std::shared_ptr<StoredBlock> Share(StoredBlock block) {
    return {new StoredBlock(std::move(block)), [this](StoredBlock* gone) {
              frames_.Give(std::move(gone->frame));
              delete gone;
            }};
  }
  BlockIndex::Entry& InsertInMemory(StoredBlockPtr block) LKV_REQUIRES(mutex_);
  // Takes a block out of memory; it stays on disk where it is there.
  StoredBlockPtr RemoveFromMemory(const BlockKey& key) LKV_REQUIRES(mutex_);
  // Forgets a record. `tombstone`: it must not come back at the next start either.
  void RemoveFromDisk(Slot slot, const BlockKey& key, bool tombstone, Removed& removed)
      LKV_REQUIRES(mutex_);
  void EvictFromMemory(const std::vector<BlockKey>& victims, Removed& removed) LKV_REQUIRES(mutex_);
  // Pins and expiry of a block in memory, to its record and, if they changed there, to disk.
  void MirrorState(const BlockIndex::Entry& entry) LKV_REQUIRES(mutex_);
  // What the writer is to note of a block, in the order of puts and notes.
  void QueueNote(JobKind kind, const BlockKey& key) LKV_REQUIRES(mutex_);
  void QueueState(const BlockKey& key) LKV_REQUIRES(mutex_);
  void QueueTombstone(const BlockKey& key) LKV_REQUIRES(mutex_);
  static uint32_t DiskRank(const BlockIndex::Entry& entry) {
    return static_cast<uint32_t>(entry.retention.rank >> DiskIndex::kRankShift);
  }
  void UseOnDisk(Slot slot) LKV_REQUIRES(mutex_);
  bool DiskWritable() const LKV_REQUIRES(mutex_) {
    return has_disk_ && health_.state == StoreHealth::State::kOk;
  }
  DiskRef RefOf(Slot slot) const LKV_REQUIRES(mutex_);
  // Drops the record if it is still where the reader found it damaged.
  void DropDamaged(const BlockKey& key, const DiskPlace& place, Removed& removed)
      LKV_REQUIRES(mutex_);
  // A reservation may wait for what `dirty` names to be written; false when the time is up.
  bool WaitForWriteBack(std::vector<BlockKey> dirty, int64_t deadline_ms) LKV_REQUIRES(mutex_);

  // --- disk_reader.cc: without the lock.
  using Description = absl::StatusOr<StoredBlockPtr>;
  std::vector<Description> ReadDescriptions(std::span<const DiskRef> refs);
  Description ReadDescription(const DiskRef& ref) {
    return std::move(ReadDescriptions({&ref, 1}).front());
  }
  // The description of `key`, null when its record is damaged (then dropped) or cannot be read.
  StoredBlockPtr Describe(const BlockKey& key, const DiskRef& ref) {
    return Checked(key, ref, ReadDescription(ref));
  }
  StoredBlockPtr Checked(const BlockKey& key, const DiskRef& ref, Description described);
  absl::StatusOr<StoredBlockPtr> ReadWhole(const DiskRef& ref, ByteVector buffer,
                                           Reservation reservation);
  StoredBlockPtr Promote(const BlockKey& key, const DiskRef& ref);

  // --- disk_writer.cc: on the writer's thread, without the lock unless it is said.
  void WriterMain();
  bool HasWork() const LKV_REQUIRES(mutex_);
  void TakeBatch(std::vector<Job>& batch) LKV_REQUIRES(mutex_);
  void AddWriteBack(const std::vector<BlockKey>& keys, size_t limit_bytes, size_t& bytes,
                    std::vector<Job>& batch) LKV_REQUIRES(mutex_);
  void MakeIndexRoom(size_t blocks, bool at_any_price);
  void WriteBatch(std::vector<Job>& batch);
  size_t WriteBackWindow() const;
  void WriteJob(Job& job);
  // Queues again what must not be lost.
  void KeepNote(const Job& job);
  absl::Status WriteOnce(Job& job);
  void Commit(Job& job);
  void FinishDurable(std::vector<Job>& batch);
  static bool IsSafe(const Job& job) {
    return job.segment && job.place.offset + job.place.bytes <= job.segment->synced_end;
  }
  void Tick();
  void SweepExpired();

  // --- segment_log.cc: on the writer's thread.
  // Appends one record and sets the job's segment and place.
  absl::Status Append(const RecordHeader& header, std::span<const ByteSpan> payload, Job& job);
  // `reclaiming`: gives up no segment, and may use the room that is kept for reclaim.
  absl::Status EnsureRoom(uint64_t bytes, bool reclaiming);
  absl::Status OpenSegment(uint64_t bytes, bool reclaiming);
  // The size of a new segment for a record of `bytes`, which the file system has room for.
  absl::StatusOr<uint64_t> ChooseSize(uint64_t bytes, uint64_t spare);
  absl::Status SealActive();
  absl::Status SyncActive();
  // The same for a segment that was found at the start, whose last syncs may not have been.
  void SyncRecovered(Segment& segment);
  // A write or sync failed: nothing is appended here any more.
  void FailActive();
  void SetMemoryOnly(const absl::Status& why);
  void ProbeDisk();
  // False when segment files are no longer in the directory; their blocks are dropped then.
  bool CheckDirectory();
  void ForgetRemovedFiles();
  void ForgetSegment(const SegmentPtr& segment);
  // Blocks whose record's key cannot be told: nobody hears of them.
  void DropSlotsOf(uint32_t number, Removed& removed) LKV_REQUIRES(mutex_);

  // --- reclaim.cc: on the writer's thread.
  // Gives a segment up: copies what is worth keeping, drops the rest, removes the file. NOT_FOUND
  // when there is none to give up.
  absl::Status ReclaimOne();
  SegmentPtr ChooseSegment(uint32_t& mean_rank);
  absl::StatusOr<std::vector<FooterEntry>> RecordsOf(const Segment& segment);
  // The records of blocks to copy; `dropped` gets those that are not worth it.
  std::vector<FooterEntry> ChooseRecords(const Segment& segment,
                                         const std::vector<FooterEntry>& records,
                                         uint32_t mean_rank, std::vector<FooterEntry>& dropped);
  absl::Status CopyRecord(const Segment& from, const FooterEntry& entry, Job& copy);
  // Moves on the pins, expiries and tombstones that the segment's records hold.
  absl::Status CopyNotes(const Segment& from, const std::vector<FooterEntry>& records);
  bool IsPinnedOnDisk(const BlockKey& key);
  bool AtPlace(const Segment& segment, const FooterEntry& entry, Slot* slot) const
      LKV_REQUIRES(mutex_);

  // --- recovery.cc, on the writer's thread or before it starts.
  struct Recovery;
  // Takes in the segment files that are not known yet.
  absl::Status RecoverSegments();
  // Segments for a file system that may have less than the cap allows.
  void FitToFileSystem();
  absl::Status RecoverSegment(uint32_t id, Recovery& recovery);
  // The index of a segment that has none, by looking at every record.
  absl::StatusOr<std::vector<FooterEntry>> ScanSegment(Segment& segment, uint64_t size);
  // What a start writes and syncs, after it: readers do not wait for a busy disk.
  void Settle();
  void FinishSegments();
  void WriteFooter(Segment& segment, const std::vector<FooterEntry>& records);
  absl::Status IndexRecords(const Segment& segment, const std::vector<FooterEntry>& records,
                            Recovery& recovery);
  void ApplyNotes(Recovery& recovery);
  absl::StatusOr<uint32_t> AddSegment(SegmentPtr segment) LKV_REQUIRES(mutex_);

  // --- scrub.cc.
  absl::Status ScrubSegment(const SegmentPtr& segment, ByteVector& buffer, ScrubReport& report,
                            const std::function<bool(uint64_t)>& each);

  const StoreOptions options_;
  const Clock* const clock_;
  uint64_t segment_bytes_, reserve_bytes_ = 0;  // constant after OpenDisk
  MemoryBudget budget_, disk_budget_;           // before what holds their reservations
  BufferPool frames_;                           // of blocks that left memory, for the next ones
  std::atomic<uint64_t> read_bytes_{0};
  bool has_disk_ = false;  // constant after OpenDisk

  mutable Mutex mutex_;
  std::shared_ptr<const RemovalListener> listener_ LKV_GUARDED_BY(mutex_);  // null: none
  BlockIndex index_ LKV_GUARDED_BY(mutex_);
  DiskIndex disk_index_ LKV_GUARDED_BY(mutex_);
  StoreStats counters_ LKV_GUARDED_BY(mutex_);
  StoreHealth health_ LKV_GUARDED_BY(mutex_);
  uint64_t last_sequence_ LKV_GUARDED_BY(mutex_) = 0;
  uint64_t in_both_ LKV_GUARDED_BY(mutex_) = 0;              // keys with an entry in each index
  std::vector<SegmentPtr> segments_ LKV_GUARDED_BY(mutex_);  // by number; null: free

  // Of the writer.
  std::deque<Job> jobs_ LKV_GUARDED_BY(mutex_);
  std::deque<Job> notes_ LKV_GUARDED_BY(mutex_);  // kState and kTombstone, which wait for the disk
  std::set<BlockKey> states_ LKV_GUARDED_BY(mutex_);    // with a kState job queued
  std::deque<BlockKey> urgent_ LKV_GUARDED_BY(mutex_);  // to be written before other write-backs
  std::deque<BlockKey> flush_ LKV_GUARDED_BY(mutex_);
  bool writing_ LKV_GUARDED_BY(mutex_) = false, stopping_ LKV_GUARDED_BY(mutex_) = false;
  bool sync_all_ LKV_GUARDED_BY(mutex_) = false;  // Flush waits for a sync
  Slot sweep_ LKV_GUARDED_BY(mutex_) = 0;
  CondVar writer_wake_, written_;
  std::thread writer_;
  // Touched on its thread alone, and by OpenDisk before it starts.
  SegmentPtr active_;
  uint64_t active_capacity_ = 0;
  int full_reclaims_ = 0;  // on a full disk, since a segment was opened
  std::vector<FooterEntry> active_entries_;
  // Recovered segments without an index, which they get by Settle.
  std::vector<std::pair<SegmentPtr, std::vector<FooterEntry>>> unfinished_;
  uint32_t next_segment_id_ = 1;
  std::unique_ptr<FileLock> lock_;
  ByteVector io_buffer_;
  Reservation io_reservation_;
  bool directory_lost_ = false;
  int64_t next_probe_ms_ = 0, last_sync_ms_ = 0, last_check_ms_ = 0;

  // Of the readers.
  std::set<BlockKey> reading_ LKV_GUARDED_BY(mutex_);
  CondVar read_done_;
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_STORE_STORE_IMPL_H_
