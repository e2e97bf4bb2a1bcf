#include "core/store/segment.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/base/crc32c.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"

namespace latticekv {
namespace {

// Read of a record's start: enough for its header and nearly any metadata.
constexpr size_t kStartBytes = 4096;

bool AllZero(ByteSpan bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

// Gives parts of a file out of a buffer that moves along with them.
class Window {
 public:
  Window(File& file, uint64_t end, ByteVector& buffer) : file_(file), end_(end), buffer_(buffer) {}

  // Up to `size` bytes at `offset`; fewer at the end. Valid until the next call.
  absl::StatusOr<ByteSpan> Get(uint64_t offset, size_t size) {
    size = static_cast<size_t>(std::min<uint64_t>(size, end_ - std::min(end_, offset)));
    if (offset < start_ || offset + size > start_ + filled_) {
      const auto want =
          static_cast<size_t>(std::min<uint64_t>(buffer_.size(), end_ - std::min(end_, offset)));
      LKV_ASSIGN_OR_RETURN(filled_, file_.ReadAt(offset, MutableByteSpan(buffer_).first(want)));
      start_ = offset;
      size = std::min(size, filled_);
    }
    return ByteSpan(buffer_).subspan(offset - start_, size);
  }
  // The buffer was used for something else.
  void Forget() { filled_ = 0; }

 private:
  File& file_;
  const uint64_t end_;
  ByteVector& buffer_;
  uint64_t start_ = 0;
  size_t filled_ = 0;
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

absl::StatusOr<RecordStart> ReadRecordStart(File& file, uint32_t segment_id, uint64_t offset,
                                            uint64_t record_bytes) {
  ByteVector bytes(static_cast<size_t>(std::min<uint64_t>(kStartBytes, record_bytes)));
  LKV_RETURN_IF_ERROR(ReadExactly(file, offset, bytes));
  RecordStart out;
  LKV_ASSIGN_OR_RETURN(out.header, DecodeRecordHeader(bytes, segment_id));
  if (out.header.record_bytes() != record_bytes ||
      out.header.metadata_bytes > limits::kMaxMetadataBytes) {
    return absl::DataLossError("the record's sizes are damaged");
  }
  const size_t size = kRecordHeaderBytes + out.header.metadata_bytes, have = bytes.size();
  bytes.resize(size);
  if (have < size) {
    LKV_RETURN_IF_ERROR(ReadExactly(file, offset + have, MutableByteSpan(bytes).subspan(have)));
  }
  bytes.erase(bytes.begin(), bytes.begin() + kRecordHeaderBytes);
  if (Crc32c(bytes) != out.header.metadata_crc) {
    return absl::DataLossError("the record's metadata is damaged");
  }
  out.metadata = std::move(bytes);
  return out;
}

absl::Status CheckPayload(File& file, const FooterEntry& entry, ByteVector& buffer,
                          const std::function<absl::Status(ByteSpan)>& each) {
  const RecordHeader& h = entry.record;
  uint64_t offset = entry.offset + kRecordHeaderBytes;
  const auto part = [&](uint64_t size, uint32_t* crc) -> absl::Status {
    while (size > 0) {
      const auto n = static_cast<size_t>(std::min<uint64_t>(size, buffer.size()));
      const MutableByteSpan piece = MutableByteSpan(buffer).first(n);
      LKV_RETURN_IF_ERROR(ReadExactly(file, offset, piece));
      if (crc != nullptr) {
        *crc = Crc32c(piece, *crc);
      } else if (!AllZero(piece)) {
        return absl::DataLossError("the padding of the record is damaged");
      }
      if (each) LKV_RETURN_IF_ERROR(each(piece));
      offset += n;
      size -= n;
    }
    return absl::OkStatus();
  };
  uint32_t metadata_crc = 0, frame_crc = 0;
  LKV_RETURN_IF_ERROR(part(h.metadata_bytes, &metadata_crc));
  LKV_RETURN_IF_ERROR(part(h.frame_bytes, &frame_crc));
  LKV_RETURN_IF_ERROR(part(h.padding_bytes(), nullptr));
  if (metadata_crc == h.metadata_crc && frame_crc == h.frame_crc) return absl::OkStatus();
  return absl::DataLossError("the payload of the record is damaged");
}

absl::StatusOr<ScanResult> ScanRecords(File& file, uint32_t segment_id, uint64_t from, uint64_t to,
                                       ByteVector& buffer,
                                       const std::function<bool(uint64_t)>& each) {
  ScanResult out;
  out.end = from;
  Window window(file, to, buffer);
  bool in_gap = false;
  for (uint64_t at = from; at < to;) {
    LKV_ASSIGN_OR_RETURN(const ByteSpan bytes, window.Get(at, kRecordHeaderBytes));
    if (bytes.empty()) break;
    absl::StatusOr<RecordHeader> header = DecodeRecordHeader(bytes, segment_id);
    if (header.ok() && header->record_bytes() <= to - at) {
      in_gap = false;
      const FooterEntry entry{at, *header};
      const absl::Status status = CheckPayload(file, entry, buffer, nullptr);
      window.Forget();
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
