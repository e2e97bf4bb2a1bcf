#include "core/store/segment.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/base/crc32c.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"

namespace latticekv {
namespace {

constexpr size_t kStartBytes = 8192;
constexpr size_t kCheckedAtOnce = 24 << 10;

bool AllZero(ByteSpan bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

// Gives parts of a file out of a buffer that moves along with them.
class Window {
 public:
  Window(File& file, uint64_t end, ByteVector& buffer) : file_(file), end_(end), buffer_(buffer) {}

  // Up to `size` bytes at `offset`, at most the buffer's; fewer at the end. Valid until the next
  // call.
  absl::StatusOr<ByteSpan> Get(uint64_t offset, size_t size) {
    size = static_cast<size_t>(std::min<uint64_t>(size, end_ - std::min(end_, offset)));
    if (offset < start_ || offset + size > start_ + filled_) {
      const uint64_t left = end_ - std::min(end_, offset);
      const size_t ahead = std::clamp(ahead_, size, std::max(size, buffer_.size()));
      const auto want = static_cast<size_t>(std::min<uint64_t>(ahead, left));
      LKV_ASSIGN_OR_RETURN(filled_, file_.ReadAt(offset, MutableByteSpan(buffer_).first(want)));
      start_ = offset;
      ahead_ = std::min(2 * ahead_, buffer_.size());
      size = std::min(size, filled_);
    }
    return ByteSpan(buffer_).subspan(offset - start_, size);
  }
  // What comes next was not read along with what came before: begins with little again.
  void Jump() { ahead_ = kFirstBytes; }
  size_t capacity() const { return buffer_.size(); }

 private:
  static constexpr size_t kFirstBytes = 4096;
  File& file_;
  const uint64_t end_;
  ByteVector& buffer_;
  uint64_t start_ = 0;
  size_t filled_ = 0, ahead_ = kFirstBytes;
};

// Takes what follows a record's header, piece by piece, and tells whether it is sound.
class PayloadCheck {
 public:
  explicit PayloadCheck(const RecordHeader& header) : header_(header) {}
  void Add(ByteSpan piece) {
    Sum(piece, header_.metadata_bytes, &metadata_bytes_, &metadata_crc_);
    Sum(piece, header_.frame_bytes, &frame_bytes_, &frame_crc_);
    padding_is_zero_ = padding_is_zero_ && AllZero(piece);
  }
  absl::Status Result() const {
    if (!padding_is_zero_) return absl::DataLossError("the padding of the record is damaged");
    if (metadata_crc_ == header_.metadata_crc && frame_crc_ == header_.frame_crc) {
      return absl::OkStatus();
    }
    return absl::DataLossError("the payload of the record is damaged");
  }

 private:
  static void Sum(ByteSpan& piece, uint64_t size, uint64_t* done, uint32_t* crc) {
    const size_t n = static_cast<size_t>(std::min<uint64_t>(piece.size(), size - *done));
    *crc = Crc32c(piece.first(n), *crc);
    *done += n;
    piece = piece.subspan(n);
  }
  const RecordHeader& header_;
  uint64_t metadata_bytes_ = 0, frame_bytes_ = 0;
  uint32_t metadata_crc_ = 0, frame_crc_ = 0;
  bool padding_is_zero_ = true;
};

}  // namespace

absl::Status ReadExactly(File& file, uint64_t offset, MutableByteSpan out) {
  LKV_ASSIGN_OR_RETURN(const size_t n, file.ReadAt(offset, out));
  if (n == out.size()) return absl::OkStatus();
  return absl::DataLossError("the segment file ends before the record does");
}

absl::Status SegmentFrame::Read(uint64_t offset, MutableByteSpan out) const {
  if (offset > frame_bytes_ || out.size() > frame_bytes_ - offset) {
    return absl::DataLossError("the read passes the end of the frame");
  }
  *segment_->read_bytes += out.size();
  return ReadExactly(*segment_->file, frame_offset_ + offset, out);
}

absl::StatusOr<std::vector<FooterEntry>> ReadFooter(File& file, uint32_t segment_id,
                                                    uint64_t file_bytes) {
  if (file_bytes < kSegmentHeaderBytes + kTrailerBytes) {
    return absl::DataLossError("the segment has no index");
  }
  ByteVector bytes(kTrailerBytes);
  LKV_RETURN_IF_ERROR(ReadExactly(file, file_bytes - kTrailerBytes, bytes));
  LKV_ASSIGN_OR_RETURN(const Trailer trailer, DecodeTrailer(bytes, segment_id, file_bytes));
  bytes.resize(uint64_t{trailer.entries} * kFooterEntryBytes);
  LKV_RETURN_IF_ERROR(ReadExactly(file, trailer.footer_offset, bytes));
  return DecodeFooterEntries(bytes, trailer, segment_id);
}

namespace {

// The header of a block's or another record that is `record_bytes` long by the index.
absl::StatusOr<RecordHeader> CheckedHeader(ByteSpan bytes, uint32_t segment_id,
                                           uint64_t record_bytes) {
  LKV_ASSIGN_OR_RETURN(const RecordHeader header, DecodeRecordHeader(bytes, segment_id));
  if (header.record_bytes() != record_bytes || header.metadata_bytes > limits::kMaxMetadataBytes) {
    return absl::DataLossError("the record's sizes are damaged");
  }
  return header;
}

}  // namespace

size_t RecordStartBytes(uint64_t record_bytes) {
  return static_cast<size_t>(std::min<uint64_t>(kStartBytes, record_bytes));
}

absl::StatusOr<RecordStart> ParseRecordStart(File& file, uint32_t segment_id, uint64_t offset,
                                             uint64_t record_bytes, ByteVector bytes) {
  RecordStart out;
  LKV_ASSIGN_OR_RETURN(out.header, CheckedHeader(bytes, segment_id, record_bytes));
  const size_t size = kRecordHeaderBytes + out.header.metadata_bytes, have = bytes.size();
  if (have < size) {
    bytes.resize(size);
    LKV_RETURN_IF_ERROR(ReadExactly(file, offset + have, MutableByteSpan(bytes).subspan(have)));
  }
  const ByteSpan all(bytes);
  const ByteSpan metadata = all.subspan(kRecordHeaderBytes, out.header.metadata_bytes);
  if (Crc32c(metadata) != out.header.metadata_crc) {
    return absl::DataLossError("the record's metadata is damaged");
  }
  out.metadata.assign(metadata.begin(), metadata.end());
  const ByteSpan rest = all.subspan(size);
  const ByteSpan head = rest.first(std::min<size_t>(rest.size(), out.header.frame_bytes));
  out.head.assign(head.begin(), head.end());
  return out;
}

absl::StatusOr<RecordStart> ReadRecordStart(File& file, uint32_t segment_id, uint64_t offset,
                                            uint64_t record_bytes) {
  ByteVector bytes(RecordStartBytes(record_bytes));
  LKV_RETURN_IF_ERROR(ReadExactly(file, offset, bytes));
  return ParseRecordStart(file, segment_id, offset, record_bytes, std::move(bytes));
}

absl::StatusOr<WholeRecord> ReadRecord(File& file, uint32_t segment_id, uint64_t offset,
                                       uint64_t record_bytes, ByteVector buffer) {
  WholeRecord out;
  out.frame = std::move(buffer);
  ByteVector start;  // until the header is whole
  bool have_header = false;
  uint32_t frame_crc = 0;
  const auto take = [](ByteSpan& from, size_t wanted, ByteVector& to) {
    const size_t n = std::min(wanted, from.size());
    to.insert(to.end(), from.begin(), from.begin() + static_cast<ptrdiff_t>(n));
    from = from.subspan(n);
  };
  const auto each = [&](ByteSpan piece) -> absl::Status {
    if (!have_header) {
      take(piece, kRecordHeaderBytes - start.size(), start);
      if (start.size() < kRecordHeaderBytes) return absl::OkStatus();
      LKV_ASSIGN_OR_RETURN(out.header, CheckedHeader(start, segment_id, record_bytes));
      have_header = true;
      out.metadata.reserve(out.header.metadata_bytes);
      out.frame.reserve(out.header.frame_bytes);
    }
    take(piece, out.header.metadata_bytes - out.metadata.size(), out.metadata);
    // Copied while it is in the core's cache, which a whole piece may not fit into.
    for (size_t n = std::min<size_t>(piece.size(), out.header.frame_bytes - out.frame.size());
         n > 0;) {
      const size_t step = std::min(n, kCheckedAtOnce);
      frame_crc = Crc32c(piece.first(step), frame_crc);
      take(piece, step, out.frame);
      n -= step;
    }
    return AllZero(piece) ? absl::OkStatus()
                          : absl::DataLossError("the padding of the record is damaged");
  };
  LKV_ASSIGN_OR_RETURN(const uint64_t got, file.ReadPieces(offset, record_bytes, each));
  if (got < record_bytes || !have_header) {
    return absl::DataLossError("the segment file ends before the record does");
  }
  if (Crc32c(out.metadata) != out.header.metadata_crc || frame_crc != out.header.frame_crc) {
    return absl::DataLossError("the payload of the record is damaged");
  }
  return out;
}

absl::Status CheckPayload(File& file, const FooterEntry& entry, const File::PieceSink& each) {
  PayloadCheck check(entry.record);
  const uint64_t size = entry.record.record_bytes() - kRecordHeaderBytes;
  LKV_ASSIGN_OR_RETURN(
      const uint64_t got,
      file.ReadPieces(entry.offset + kRecordHeaderBytes, size, [&](ByteSpan piece) -> absl::Status {
        check.Add(piece);
        return each ? each(piece) : absl::OkStatus();
      }));
  if (got < size) return absl::DataLossError("the segment file ends before the record does");
  return check.Result();
}

absl::StatusOr<ScanResult> ScanRecords(File& file, uint32_t segment_id, uint64_t from, uint64_t to,
                                       ByteVector& buffer,
                                       const std::function<bool(uint64_t)>& each) {
  ScanResult out;
  out.end = from;
  Window window(file, to, buffer);
  bool in_gap = false;
  uint64_t data_end = from;
  for (uint64_t at = from; at < to;) {
    if (at >= data_end) {
      // The space that a segment takes ahead is not read.
      LKV_ASSIGN_OR_RETURN(const File::Extent data, file.NextData(at));
      if (data.begin >= std::min(to, data.end)) break;
      data_end = data.end;
      if (data.begin > at) {
        at = data.begin / kRecordAlignment * kRecordAlignment;
        in_gap = false;
        window.Jump();
      }
    }
    LKV_ASSIGN_OR_RETURN(const ByteSpan bytes, window.Get(at, kRecordHeaderBytes));
    if (bytes.empty()) break;
    absl::StatusOr<RecordHeader> header = DecodeRecordHeader(bytes, segment_id);
    if (header.ok() && header->record_bytes() <= to - at) {
      in_gap = false;
      const FooterEntry entry{at, *header};
      absl::Status status;
      if (header->record_bytes() <= window.capacity()) {
        LKV_ASSIGN_OR_RETURN(const ByteSpan record, window.Get(at, header->record_bytes()));
        status = absl::DataLossError("the segment file ends before the record does");
        if (record.size() == header->record_bytes()) {
          PayloadCheck check(*header);
          check.Add(record.subspan(kRecordHeaderBytes));
          status = check.Result();
        }
      } else {
        status = CheckPayload(file, entry, nullptr);
        window.Jump();
      }
      if (!status.ok() && !absl::IsDataLoss(status)) return status;
      (status.ok() ? out.good : out.damaged).push_back(entry);
      at += header->record_bytes();
      out.end = at;
      if (each && !each(header->record_bytes())) return absl::CancelledError("stopped");
      continue;
    }
    // Records begin at multiples of the alignment: look there for the next.
    if (!in_gap && !AllZero(bytes.first(std::min(bytes.size(), kRecordAlignment)))) {
      in_gap = true;
      ++out.gaps;
    }
    at += kRecordAlignment;
  }
  return out;
}

}  // namespace latticekv
