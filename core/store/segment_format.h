// The bytes of segment files; docs/format/segment.md is their specification.
#ifndef LATTICEKV_CORE_STORE_SEGMENT_FORMAT_H_
#define LATTICEKV_CORE_STORE_SEGMENT_FORMAT_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "core/base/sha256.h"

namespace latticekv {

inline constexpr uint32_t kSegmentVersion = 1;
inline constexpr size_t kSegmentHeaderBytes = 64;
inline constexpr size_t kRecordHeaderBytes = 128;
inline constexpr size_t kRecordAlignment = 64;
inline constexpr size_t kFooterEntryBytes = 8 + kRecordHeaderBytes;
inline constexpr size_t kTrailerBytes = 64;

struct SegmentHeader {
  uint32_t id = 0;
  int64_t created_ms = 0;  // wall clock
};

enum class RecordType : uint8_t {
  kBlock = 1,      // a block: metadata, then the frame
  kState = 2,      // pins and expiry that a block has from now on; the metadata is its timed pins
  kTombstone = 3,  // the block and all before it are gone
};

struct RecordHeader {
  RecordType type = RecordType::kBlock;
  uint64_t sequence = 0;  // the record of a key with the highest one counts
  Digest key{};
  std::optional<Digest> parent;
  uint32_t depth_tokens = 0;
  uint32_t quality_rank = 0;
  uint32_t metadata_bytes = 0;
  uint32_t frame_bytes = 0;
  int64_t expires_ms = 0;  // wall clock; 0: never
  uint32_t lasting_pins = 0;
  uint32_t metadata_crc = 0;
  uint32_t frame_crc = 0;

  uint64_t payload_bytes() const { return uint64_t{metadata_bytes} + frame_bytes; }
  // With the zeros behind it.
  uint64_t record_bytes() const {
    return (kRecordHeaderBytes + payload_bytes() + kRecordAlignment - 1) / kRecordAlignment *
           kRecordAlignment;
  }
  size_t padding_bytes() const {
    return static_cast<size_t>(record_bytes() - kRecordHeaderBytes - payload_bytes());
  }
};

struct FooterEntry {
  uint64_t offset = 0;
  RecordHeader record;
};

using SegmentHeaderBytes = std::array<std::byte, kSegmentHeaderBytes>;
using RecordHeaderBytes = std::array<std::byte, kRecordHeaderBytes>;

SegmentHeaderBytes EncodeSegmentHeader(const SegmentHeader& header);
// DATA_LOSS when it is damaged; FAILED_PRECONDITION, with what to do, when its version is unknown.
absl::StatusOr<SegmentHeader> DecodeSegmentHeader(ByteSpan bytes);

// A record belongs to the segment `segment_id` and is not valid in another.
RecordHeaderBytes EncodeRecordHeader(const RecordHeader& header, uint32_t segment_id);
// DATA_LOSS when these bytes are no header of a record of that segment.
absl::StatusOr<RecordHeader> DecodeRecordHeader(ByteSpan bytes, uint32_t segment_id);
// A cheap look at whether a header may begin here.
bool MayBeRecordHeader(ByteSpan bytes);

// The footer of a segment whose records end at `offset`: entries and trailer.
ByteVector EncodeFooter(const std::vector<FooterEntry>& entries, uint32_t segment_id,
                        uint64_t offset);
inline uint64_t FooterBytes(uint64_t entries) {
  return entries * kFooterEntryBytes + kTrailerBytes;
}

struct Trailer {
  uint32_t entries = 0;
  uint64_t footer_offset = 0;
  uint32_t entries_crc = 0;
};
// Of a file of `file_bytes`; DATA_LOSS when it has no whole one.
absl::StatusOr<Trailer> DecodeTrailer(ByteSpan bytes, uint32_t segment_id, uint64_t file_bytes);
absl::StatusOr<std::vector<FooterEntry>> DecodeFooterEntries(ByteSpan bytes, const Trailer& trailer,
                                                             uint32_t segment_id);

// "segment-0000000012.lks" and back; nothing for other names.
std::string SegmentFileName(uint32_t id);
std::optional<uint32_t> ParseSegmentFileName(const std::string& name);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_STORE_SEGMENT_FORMAT_H_
