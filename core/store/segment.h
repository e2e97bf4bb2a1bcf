// Segment files: opening, reading and checking what is in them.
#ifndef LATTICEKV_CORE_STORE_SEGMENT_H_
#define LATTICEKV_CORE_STORE_SEGMENT_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/mutex.h"
#include "core/io/file_system.h"
#include "core/store/memory_budget.h"
#include "core/store/segment_format.h"
#include "core/store/tiered_store.h"

namespace latticekv {

// One segment file. Its bytes count against the disk's cap until the last reader has let go, since
// so long they take space even when the file was removed.
struct Segment {
  Segment(uint32_t id, std::string path, std::unique_ptr<File> file, Reservation disk,
          std::atomic<uint64_t>* read_bytes)
      : id(id),
        path(std::move(path)),
        file(std::move(file)),
        read_bytes(read_bytes),
        disk(std::move(disk)) {}

  const uint32_t id;
  const std::string path;
  const std::unique_ptr<File> file;
  std::atomic<uint64_t>* const read_bytes;  // counts what is read to serve blocks

  // Guarded by the store's lock.
  Reservation disk;
  uint32_t number = 0;                 // in the disk index
  uint64_t end = kSegmentHeaderBytes;  // of the records
  uint64_t synced_end = 0;             // what lies before survives power loss
  bool sealed = false;                 // nothing is appended any more
  bool has_footer = false;
  bool failed = false;  // a write or sync failed: what lies behind `synced_end` stays unsafe
};
using SegmentPtr = std::shared_ptr<Segment>;

// The frame of a record, for StoredBlock::source.
class SegmentFrame : public FrameSource {
 public:
  // `head`: the first bytes of the frame, if they are there already.
  SegmentFrame(SegmentPtr segment, uint64_t record_offset, const RecordHeader& header,
               ByteVector head)
      : segment_(std::move(segment)),
        record_offset_(record_offset),
        frame_offset_(record_offset + kRecordHeaderBytes + header.metadata_bytes),
        frame_bytes_(header.frame_bytes),
        head_(std::move(head)) {}
  absl::Status Read(uint64_t offset, MutableByteSpan out) const override;
  ByteVector TakeHead() const override {
    MutexLock lock(mutex_);
    return std::exchange(head_, {});
  }
  const Segment& segment() const { return *segment_; }
  uint64_t record_offset() const { return record_offset_; }

 private:
  const SegmentPtr segment_;
  const uint64_t record_offset_, frame_offset_, frame_bytes_;
  mutable Mutex mutex_;
  mutable ByteVector head_ LKV_GUARDED_BY(mutex_);
};

// DATA_LOSS when the file ends before `out` is full.
absl::Status ReadExactly(File& file, uint64_t offset, MutableByteSpan out);

// The index at the end of a segment of `file_bytes`; DATA_LOSS when there is none that is whole.
absl::StatusOr<std::vector<FooterEntry>> ReadFooter(File& file, uint32_t segment_id,
                                                    uint64_t file_bytes);

// Header and metadata of a record, checked, and those bytes of the frame that came along.
struct RecordStart {
  RecordHeader header;
  ByteVector metadata, head;
};
// What to read of a record for its start: header, nearly any metadata, and the frame's own header.
size_t RecordStartBytes(uint64_t record_bytes);
// `bytes` are the record's first; more of it is read where they do not hold the metadata.
absl::StatusOr<RecordStart> ParseRecordStart(File& file, uint32_t segment_id, uint64_t offset,
                                             uint64_t record_bytes, ByteVector bytes);
absl::StatusOr<RecordStart> ReadRecordStart(File& file, uint32_t segment_id, uint64_t offset,
                                            uint64_t record_bytes);
// A record of a block, read and checked whole, in one go.
struct WholeRecord {
  RecordHeader header;
  ByteVector metadata, frame;
};
// The frame comes into `buffer`, which is empty.
absl::StatusOr<WholeRecord> ReadRecord(File& file, uint32_t segment_id, uint64_t offset,
                                       uint64_t record_bytes, ByteVector buffer = {});

// Reads metadata, frame and padding of a record and checks them; `each`, if set, gets the bytes
// piece by piece, in order, before it is known whether they are sound. DATA_LOSS when they are not.
absl::Status CheckPayload(File& file, const FooterEntry& entry, const File::PieceSink& each);

// Finds the records between `from` and `to` by their headers and checks them whole; those that fit
// into `buffer` are read through it, many at a time.
struct ScanResult {
  std::vector<FooterEntry> good;
  std::vector<FooterEntry> damaged;  // the header is good, what follows is not
  uint64_t gaps = 0;                 // stretches of other bytes than zeros without a good header
  uint64_t end = 0;                  // behind the last record
};
// `each`, if set, is told of the bytes looked at; false from it ends the scan with CANCELLED.
absl::StatusOr<ScanResult> ScanRecords(File& file, uint32_t segment_id, uint64_t from, uint64_t to,
                                       ByteVector& buffer,
                                       const std::function<bool(uint64_t)>& each = nullptr);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_STORE_SEGMENT_H_
