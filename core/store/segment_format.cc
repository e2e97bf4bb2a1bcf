#include "core/store/segment_format.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "core/base/crc32c.h"
#include "core/base/status_macros.h"

namespace latticekv {
namespace {

constexpr std::string_view kSegmentMagic = "LKVSEGMT";
constexpr std::string_view kTrailerMagic = "LKVSEGFT";
constexpr std::string_view kRecordMagic = "LKVR";
constexpr uint32_t kHasParent = 1;  // flag of a record

absl::Status Damaged(std::string_view what) {
  return absl::DataLossError(absl::StrCat(std::string(what), " is damaged"));
}

// Puts the CRC32C of all bytes before the last four there.
template <size_t N>
void Seal(std::array<std::byte, N>& bytes) {
  StoreLe<uint32_t>(bytes.data() + N - 4, Crc32c(ByteSpan(bytes).first(N - 4)));
}

bool IsSealed(ByteSpan bytes) {
  return LoadLe<uint32_t>(bytes.data() + bytes.size() - 4) == Crc32c(bytes.first(bytes.size() - 4));
}

bool Begins(ByteSpan bytes, std::string_view magic) {
  return AsText(bytes.first(magic.size())) == magic;
}

bool AllZero(ByteSpan bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

absl::Status CheckVersion(uint32_t version, std::string_view what) {
  if (version == kSegmentVersion) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      std::string(what), " has format version ", version, ", and this daemon knows ",
      kSegmentVersion, " only; run the daemon that wrote it, or use another directory"));
}

}  // namespace

SegmentHeaderBytes EncodeSegmentHeader(const SegmentHeader& header) {
  SegmentHeaderBytes out{};
  std::copy_n(AsBytes(kSegmentMagic).begin(), 8, out.begin());
  StoreLe<uint32_t>(out.data() + 8, kSegmentVersion);
  StoreLe<uint32_t>(out.data() + 12, kSegmentHeaderBytes);
  StoreLe<uint32_t>(out.data() + 16, header.id);
  StoreLe<int64_t>(out.data() + 24, header.created_ms);
  Seal(out);
  return out;
}

absl::StatusOr<SegmentHeader> DecodeSegmentHeader(ByteSpan bytes) {
  if (bytes.size() < kSegmentHeaderBytes) return Damaged("the segment header");
  bytes = bytes.first(kSegmentHeaderBytes);
  // The checksum first: a damaged version number is damage, not a new version.
  if (!Begins(bytes, kSegmentMagic) || !IsSealed(bytes)) return Damaged("the segment header");
  LKV_RETURN_IF_ERROR(CheckVersion(LoadLe<uint32_t>(bytes.data() + 8), "the segment"));
  if (LoadLe<uint32_t>(bytes.data() + 12) != kSegmentHeaderBytes ||
      !AllZero(bytes.subspan(20, 4)) || !AllZero(bytes.subspan(32, 28))) {
    return Damaged("the segment header");
  }
  SegmentHeader out;
  out.id = LoadLe<uint32_t>(bytes.data() + 16);
  out.created_ms = LoadLe<int64_t>(bytes.data() + 24);
  return out;
}

RecordHeaderBytes EncodeRecordHeader(const RecordHeader& h, uint32_t segment_id) {
  RecordHeaderBytes out{};
  std::byte* p = out.data();
  std::copy_n(AsBytes(kRecordMagic).begin(), 4, p);
  StoreLe<uint8_t>(p + 4, static_cast<uint8_t>(h.type));
  StoreLe<uint8_t>(p + 5, h.parent ? kHasParent : 0);
  StoreLe<uint16_t>(p + 6, kRecordHeaderBytes);
  StoreLe<uint64_t>(p + 8, h.sequence);
  std::copy(h.key.begin(), h.key.end(), p + 16);
  if (h.parent) std::copy(h.parent->begin(), h.parent->end(), p + 48);
  StoreLe<uint32_t>(p + 80, h.depth_tokens);
  StoreLe<uint32_t>(p + 84, h.quality_rank);
  StoreLe<uint32_t>(p + 88, h.metadata_bytes);
  StoreLe<uint32_t>(p + 92, h.frame_bytes);
  StoreLe<int64_t>(p + 96, h.expires_ms);
  StoreLe<uint32_t>(p + 104, h.lasting_pins);
  StoreLe<uint32_t>(p + 108, segment_id);
  StoreLe<uint32_t>(p + 112, h.metadata_crc);
  StoreLe<uint32_t>(p + 116, h.frame_crc);
  Seal(out);
  return out;
}

bool MayBeRecordHeader(ByteSpan bytes) {
  return bytes.size() >= kRecordHeaderBytes && Begins(bytes, kRecordMagic);
}

absl::StatusOr<RecordHeader> DecodeRecordHeader(ByteSpan bytes, uint32_t segment_id) {
  if (!MayBeRecordHeader(bytes)) return Damaged("the record header");
  bytes = bytes.first(kRecordHeaderBytes);
  const std::byte* p = bytes.data();
  const auto type = LoadLe<uint8_t>(p + 4), flags = LoadLe<uint8_t>(p + 5);
  if (!IsSealed(bytes) || type < 1 || type > 3 || (flags & ~kHasParent) != 0 ||
      LoadLe<uint16_t>(p + 6) != kRecordHeaderBytes || LoadLe<uint32_t>(p + 108) != segment_id ||
      !AllZero(bytes.subspan(120, 4))) {
    return Damaged("the record header");
  }
  RecordHeader out;
  out.type = static_cast<RecordType>(type);
  out.sequence = LoadLe<uint64_t>(p + 8);
  std::copy_n(p + 16, out.key.size(), out.key.begin());
  if ((flags & kHasParent) != 0) {
    out.parent.emplace();
    std::copy_n(p + 48, out.parent->size(), out.parent->begin());
  }
  out.depth_tokens = LoadLe<uint32_t>(p + 80);
  out.quality_rank = LoadLe<uint32_t>(p + 84);
  out.metadata_bytes = LoadLe<uint32_t>(p + 88);
  out.frame_bytes = LoadLe<uint32_t>(p + 92);
  out.expires_ms = LoadLe<int64_t>(p + 96);
  out.lasting_pins = LoadLe<uint32_t>(p + 104);
  out.metadata_crc = LoadLe<uint32_t>(p + 112);
  out.frame_crc = LoadLe<uint32_t>(p + 116);
  return out;
}

ByteVector EncodeFooter(const std::vector<FooterEntry>& entries, uint32_t segment_id,
                        uint64_t offset) {
  ByteVector out(FooterBytes(entries.size()));
  std::byte* p = out.data();
  for (const FooterEntry& entry : entries) {
    StoreLe<uint64_t>(p, entry.offset);
    // Bound to another number, so that no scan takes it for a record.
    const RecordHeaderBytes header = EncodeRecordHeader(entry.record, ~segment_id);
    std::copy(header.begin(), header.end(), p + 8);
    p += kFooterEntryBytes;
  }
  std::array<std::byte, kTrailerBytes> trailer{};
  std::copy_n(AsBytes(kTrailerMagic).begin(), 8, trailer.begin());
  StoreLe<uint32_t>(trailer.data() + 8, kSegmentVersion);
  StoreLe<uint32_t>(trailer.data() + 12, static_cast<uint32_t>(entries.size()));
  StoreLe<uint64_t>(trailer.data() + 16, offset);
  StoreLe<uint32_t>(trailer.data() + 24, segment_id);
  StoreLe<uint32_t>(trailer.data() + 28,
                    Crc32c(ByteSpan(out).first(entries.size() * kFooterEntryBytes)));
  Seal(trailer);
  std::copy(trailer.begin(), trailer.end(), p);
  return out;
}

absl::StatusOr<Trailer> DecodeTrailer(ByteSpan bytes, uint32_t segment_id, uint64_t file_bytes) {
  if (bytes.size() != kTrailerBytes || !Begins(bytes, kTrailerMagic) || !IsSealed(bytes)) {
    return Damaged("the segment's index");
  }
  LKV_RETURN_IF_ERROR(CheckVersion(LoadLe<uint32_t>(bytes.data() + 8), "the segment's index"));
  Trailer out;
  out.entries = LoadLe<uint32_t>(bytes.data() + 12);
  out.footer_offset = LoadLe<uint64_t>(bytes.data() + 16);
  out.entries_crc = LoadLe<uint32_t>(bytes.data() + 28);
  if (LoadLe<uint32_t>(bytes.data() + 24) != segment_id || !AllZero(bytes.subspan(32, 28)) ||
      out.footer_offset > file_bytes ||
      file_bytes - out.footer_offset != FooterBytes(out.entries)) {
    return Damaged("the segment's index");
  }
  return out;
}

absl::StatusOr<std::vector<FooterEntry>> DecodeFooterEntries(ByteSpan bytes, const Trailer& trailer,
                                                             uint32_t segment_id) {
  if (bytes.size() != uint64_t{trailer.entries} * kFooterEntryBytes ||
      Crc32c(bytes) != trailer.entries_crc) {
    return Damaged("the segment's index");
  }
  std::vector<FooterEntry> out;
  out.reserve(trailer.entries);
  for (; !bytes.empty(); bytes = bytes.subspan(kFooterEntryBytes)) {
    FooterEntry& entry = out.emplace_back();
    entry.offset = LoadLe<uint64_t>(bytes.data());
    LKV_ASSIGN_OR_RETURN(entry.record,
                         DecodeRecordHeader(bytes.subspan(8, kRecordHeaderBytes), ~segment_id));
    if (entry.offset % kRecordAlignment != 0 || entry.offset < kSegmentHeaderBytes ||
        entry.offset > trailer.footer_offset ||
        entry.record.record_bytes() > trailer.footer_offset - entry.offset) {
      return Damaged("the segment's index");
    }
  }
  return out;
}

std::string SegmentFileName(uint32_t id) {
  char name[32];
  snprintf(name, sizeof(name), "segment-%010u.lks", id);
  return name;
}

std::optional<uint32_t> ParseSegmentFileName(const std::string& name) {
  unsigned id = 0;
  if (sscanf(name.c_str(), "segment-%10u.lks", &id) != 1) return std::nullopt;
  if (SegmentFileName(id) != name) return std::nullopt;
  return id;
}

}  // namespace latticekv
