#include "core/codec/frame_format.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/base/crc32c.h"
#include "core/base/limits.h"

namespace latticekv {
namespace {

constexpr size_t kLayerCountOffset = 28;  // of the u16 in the header

absl::Status Damaged(const char* what) {
  return absl::DataLossError(absl::StrCat("frame: ", what));
}

Digest ReadDigest(ByteReader& in) {
  Digest out{};
  const ByteSpan bytes = in.GetBytes(out.size());
  std::copy(bytes.begin(), bytes.end(), out.begin());
  return out;
}

void PutErrors(const ErrorSums& e, ByteWriter& out) {
  out.Put(e.key_error_sum);
  out.Put(e.value_error_sum);
  out.Put(e.key_vectors);
  out.Put(e.value_vectors);
}

ErrorSums GetErrors(ByteReader& in) {
  ErrorSums e;
  e.key_error_sum = in.Get<uint64_t>();
  e.value_error_sum = in.Get<uint64_t>();
  e.key_vectors = in.Get<uint32_t>();
  e.value_vectors = in.Get<uint32_t>();
  return e;
}

void PutSection(FrameSection type, ByteSpan bytes, ByteWriter& out) {
  out.Put<uint16_t>(type);
  out.Put<uint16_t>(0);
  out.Put(static_cast<uint32_t>(bytes.size()));
  out.PutBytes(bytes);
}

ByteVector Sections(const FrameHeader& h) {
  ByteWriter out;
  if (h.stages & kStageMass) {
    ByteWriter coarse;
    PutErrors(h.coarse, coarse);
    PutSection(kSectionCoarse, coarse.bytes(), out);
  }
  if (h.stages & kStageEvicted) {
    ByteVector bitmap((h.keep.size() + 7) / 8);
    for (size_t t = 0; t < h.keep.size(); ++t) {
      bitmap[t / 8] |= static_cast<std::byte>(h.keep[t] << (t % 8));
    }
    PutSection(kSectionKeep, bitmap, out);
  }
  return out.Take();
}

// Some tokens but not all are kept, and the bits behind the last are zero.
bool ReadKeep(ByteSpan bitmap, FrameHeader& h) {
  if (bitmap.size() != (h.tokens + size_t{7}) / 8 || !h.keep.empty()) return false;
  for (size_t t = 0; t < bitmap.size() * 8; ++t) {
    const auto bit = static_cast<uint8_t>(bitmap[t / 8] >> (t % 8) & std::byte{1});
    if (t < h.tokens) {
      h.keep.push_back(bit);
    } else if (bit != 0) {
      return false;
    }
  }
  const uint16_t rows = StoredRows(h);
  return rows > 0 && rows < h.tokens;
}

// u16 type, u16 zero, u32 size, bytes; unknown types are skipped. The sections that the stages ask
// for must be there.
bool ReadSections(ByteSpan sections, FrameHeader& h) {
  ByteReader in(sections);
  bool coarse = false;
  while (in.remaining() > 0) {
    const uint16_t type = in.Get<uint16_t>();
    const uint16_t zero = in.Get<uint16_t>();
    const ByteSpan bytes = in.GetBytes(in.Get<uint32_t>());
    ByteReader body(bytes);
    if (!in.ok() || zero != 0) return false;
    if (type == kSectionCoarse && h.stages & kStageMass) {
      h.coarse = GetErrors(body);
      if (coarse || !body.ok() || body.remaining() != 0) return false;
      coarse = true;
    }
    if (type == kSectionKeep && h.stages & kStageEvicted && !ReadKeep(bytes, h)) return false;
  }
  return coarse == ((h.stages & kStageMass) != 0) &&
         h.keep.empty() == ((h.stages & kStageEvicted) == 0);
}

}  // namespace

uint16_t StoredRows(const FrameHeader& h) {
  if (h.keep.empty()) return h.tokens;
  return static_cast<uint16_t>(std::count(h.keep.begin(), h.keep.end(), 1));
}

ByteVector SerializeFrameHeader(const FrameHeader& h) {
  const ByteVector sections = Sections(h);
  ByteWriter out;
  out.Put(kFrameMagic);
  out.Put(kFrameMajor);
  out.Put<uint8_t>(sections.empty() ? 0 : kFrameMinor);
  out.Put<uint16_t>(kFrameHeaderBytes);
  out.Put(h.stages);
  out.Put(h.preset);
  out.Put(h.flags);
  out.Put(h.value_unit_16);
  out.Put(h.start_position);
  out.Put(h.tokens);
  out.Put(StoredRows(h));
  out.Put(static_cast<uint16_t>(h.layers.size()));
  out.Put<uint16_t>(0);
  out.PutBytes(h.layout_fingerprint);
  out.PutBytes(h.profile_hash);
  PutErrors(h.errors, out);
  out.Put(static_cast<uint32_t>(sections.size()));
  out.Put<uint32_t>(0);  // checksum, below
  for (const LayerEntry& layer : h.layers) {
    out.Put(layer.size_bytes);
    out.Put(layer.crc32c);
    out.Put(layer.logit_noise_q15);
    out.Put(layer.value_error_q15);
  }
  out.PutBytes(sections);
  StoreLe<uint32_t>(out.data() + kFrameHeaderBytes - 4, Crc32c(out.bytes()));
  return out.Take();
}

absl::StatusOr<ParsedFrame> ParseFrameHeader(ByteSpan frame) {
  return ParseFrameHeader(frame, frame.size());
}

size_t FrameBytesBound(size_t layers, size_t raw_bytes) {
  return raw_bytes + raw_bytes / 8 + 4096 * (layers + 1);
}

size_t FramePrefixBytes(const FrameHeader& header, size_t layers) {
  return kFrameHeaderBytes + layers * kLayerEntryBytes + Sections(header).size();
}

uint64_t FramePrefixBytes(ByteSpan header) {
  const uint64_t layers = LoadLe<uint16_t>(header.data() + kLayerCountOffset);
  const uint64_t sections_bytes = LoadLe<uint32_t>(header.data() + kFrameHeaderBytes - 8);
  return kFrameHeaderBytes + layers * kLayerEntryBytes + sections_bytes;
}

absl::StatusOr<ParsedFrame> ParseFrameHeader(ByteSpan frame, uint64_t frame_bytes) {
  if (frame.size() < kFrameHeaderBytes) return Damaged("shorter than a header");
  if (frame_bytes > limits::kMaxFrameBytes) return Damaged("larger than kMaxFrameBytes");
  ByteReader in(frame);
  if (in.Get<uint32_t>() != kFrameMagic) return Damaged("bad magic, this is not a frame");
  const int major = in.Get<uint8_t>();
  if (major != kFrameMajor) {
    return absl::UnimplementedError(
        absl::StrCat("frame: format version ", major, " is not known to this build"));
  }
  in.Get<uint8_t>();  // minor: newer minors only add optional sections
  if (in.Get<uint16_t>() != kFrameHeaderBytes) return Damaged("bad header size");

  ParsedFrame out;
  FrameHeader& h = out.header;
  h.stages = in.Get<uint32_t>();
  h.preset = in.Get<uint8_t>();
  h.flags = in.Get<uint8_t>();
  h.value_unit_16 = in.Get<int16_t>();
  h.start_position = in.Get<uint64_t>();
  h.tokens = in.Get<uint16_t>();
  const uint16_t rows = in.Get<uint16_t>();
  const uint16_t layers = in.Get<uint16_t>();
  const uint16_t reserved = in.Get<uint16_t>();
  h.layout_fingerprint = ReadDigest(in);
  h.profile_hash = ReadDigest(in);
  h.errors = GetErrors(in);
  const size_t sections_bytes = in.Get<uint32_t>();
  const uint32_t crc = in.Get<uint32_t>();

  const size_t table_bytes = layers * kLayerEntryBytes;
  if (table_bytes + sections_bytes > in.remaining()) return Damaged("truncated layer table");
  // The checksum covers header (its own field as zero), layer table and sections.
  std::array<std::byte, 4> zero{};
  uint32_t actual = Crc32c(frame.first(kFrameHeaderBytes - 4));
  actual = Crc32c(zero, actual);
  actual = Crc32c(frame.subspan(kFrameHeaderBytes, table_bytes + sections_bytes), actual);
  if (actual != crc) return Damaged("header checksum is wrong");
  if (h.stages & ~kKnownStages) {
    return absl::UnimplementedError(
        absl::StrCat("frame: needs stages this build does not know (mask ", h.stages, ")"));
  }
  const bool exact = h.stages & kStageExact, seed = h.stages & kStageSeed;
  const bool lattice = h.stages & kStageLattice;
  if (exact + lattice + seed != 1) return Damaged("must be one of exact, lattice or seed coded");
  if (seed && h.stages & ~(kStageSeed | kStageRope | kStageEvicted)) {
    return Damaged("seed frames have no other stages but rope and eviction");
  }
  if (exact && (h.stages & ~kStageEvicted) != kStageExact) {
    return Damaged("exact frames have no other stage but eviction");
  }
  if (h.flags & ~kFlagProfiled) return Damaged("reserved flags are set");
  if (reserved != 0) return Damaged("reserved fields are set");
  if (h.tokens == 0 || h.tokens > limits::kMaxChunkTokens) return Damaged("bad token count");
  if (layers == 0 || layers > limits::kMaxLayers) return Damaged("bad layer count");
  if (h.preset < 1 || h.preset > 8 || exact != (h.preset == 1) || seed != (h.preset == 8)) {
    return Damaged("bad preset");
  }
  if (h.start_position > limits::kMaxPosition) return Damaged("bad start position");
  if (h.value_unit_16 < -512 || h.value_unit_16 > 512) return Damaged("bad value unit");

  out.layer_offsets.push_back(kFrameHeaderBytes + table_bytes + sections_bytes);
  for (uint16_t l = 0; l < layers; ++l) {
    LayerEntry entry;
    entry.size_bytes = in.Get<uint32_t>();
    entry.crc32c = in.Get<uint32_t>();
    entry.logit_noise_q15 = in.Get<uint16_t>();
    entry.value_error_q15 = in.Get<uint16_t>();
    h.layers.push_back(entry);
    out.layer_offsets.push_back(out.layer_offsets.back() + entry.size_bytes);
  }
  if (!ReadSections(in.GetBytes(sections_bytes), h)) return Damaged("bad optional section");
  if (rows != StoredRows(h)) return Damaged("the row count is not that of the kept tokens");
  if (out.layer_offsets.back() != frame_bytes) return Damaged("layer sizes and frame size differ");
  return out;
}

absl::Status CheckLayer(ByteSpan bytes, uint32_t layer, uint32_t crc32c) {
  if (Crc32c(bytes) == crc32c) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("frame: layer ", layer, " has a wrong checksum"));
}

absl::StatusOr<ByteSpan> CheckedLayer(ByteSpan frame, std::span<const uint64_t> layer_offsets,
                                      uint32_t layer, uint32_t crc32c) {
  const uint64_t begin = layer_offsets[layer];
  const ByteSpan bytes = frame.subspan(begin, layer_offsets[layer + 1] - begin);
  if (const absl::Status sound = CheckLayer(bytes, layer, crc32c); !sound.ok()) return sound;
  return bytes;
}

}  // namespace latticekv
