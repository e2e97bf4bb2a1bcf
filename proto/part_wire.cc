#include "proto/part_wire.h"

#include <algorithm>
#include <array>
#include <string>

namespace latticekv {
namespace {

// More than the envelope and the fields before the payload can take.
constexpr size_t kHeadBytes = 64;

enum WireType : uint32_t { kVarint = 0, kBytes = 2, kFixed32 = 5 };
constexpr uint32_t Tag(uint32_t field, WireType type) { return field << 3 | type; }

void PutVarint(uint64_t value, std::string* out) {
  for (; value >= 128; value >>= 7) out->push_back(static_cast<char>(value | 128));
  out->push_back(static_cast<char>(value));
}

// As protobuf does, zero is not written.
void PutNumber(uint32_t field, uint64_t value, std::string* out) {
  if (value == 0) return;
  PutVarint(Tag(field, kVarint), out);
  PutVarint(value, out);
}

void PutFixed32(uint32_t field, uint32_t value, std::string* out) {
  if (value == 0) return;
  PutVarint(Tag(field, kFixed32), out);
  for (int i = 0; i < 4; ++i) out->push_back(static_cast<char>(value >> (8 * i)));
}

// Field `envelope` of the message holds `fields` and, as field `data_field`, the data.
grpc::ByteBuffer Write(uint32_t envelope, std::string fields, uint32_t data_field,
                       const grpc::Slice& data) {
  PutVarint(Tag(data_field, kBytes), &fields);
  PutVarint(data.size(), &fields);
  std::string head;
  PutVarint(Tag(envelope, kBytes), &head);
  PutVarint(fields.size() + data.size(), &head);
  const grpc::Slice slices[2] = {grpc::Slice(head + fields), data};
  return grpc::ByteBuffer(slices, 2);
}

// Reads the bytes before the payload; past their end every read fails.
class HeadReader {
 public:
  explicit HeadReader(const std::vector<grpc::Slice>& slices) {
    for (const grpc::Slice& slice : slices) {
      total_ += slice.size();
      const size_t size = std::min(slice.size(), head_.size() - size_);
      std::copy_n(slice.begin(), size, head_.begin() + size_);
      size_ += size;
    }
  }
  bool Varint(uint64_t* out) {
    *out = 0;
    for (uint32_t shift = 0; shift < 64 && at_ < size_; shift += 7) {
      const uint64_t byte = head_[at_++];
      *out |= (byte & 127) << shift;
      if (byte < 128) return true;
    }
    return false;
  }
  bool Fixed32(uint64_t* out) {
    if (size_ - at_ < 4) return false;
    *out = LoadLe<uint32_t>(&head_[at_]);
    at_ += 4;
    return true;
  }
  size_t at() const { return at_; }
  size_t left() const { return total_ - at_; }

 private:
  std::array<uint8_t, kHeadBytes> head_{};
  size_t size_ = 0, at_ = 0, total_ = 0;
};

// The bytes of `slices` from `begin` on.
std::vector<ByteSpan> Rest(const std::vector<grpc::Slice>& slices, size_t begin) {
  std::vector<ByteSpan> out;
  for (const grpc::Slice& slice : slices) {
    const size_t skip = std::min(begin, slice.size());
    begin -= skip;
    if (skip == slice.size()) continue;
    out.push_back({reinterpret_cast<const std::byte*>(slice.begin()) + skip, slice.size() - skip});
  }
  return out;
}

}  // namespace

std::optional<PutPartView> ReadPutPart(const std::vector<grpc::Slice>& slices) {
  constexpr uint32_t kDataField = v1::BlockPart::kDataFieldNumber;
  HeadReader head(slices);
  uint64_t tag = 0, bytes = 0;
  if (!head.Varint(&tag) || tag != Tag(v1::PutBlocksRequest::kPartFieldNumber, kBytes) ||
      !head.Varint(&bytes) || bytes != head.left()) {
    return std::nullopt;
  }
  PutPartView out;
  uint64_t value = 0;
  for (uint64_t last = 0; head.Varint(&tag); last = tag) {
    if (tag <= last) return std::nullopt;
    if (tag == Tag(kDataField, kBytes)) {
      if (!head.Varint(&bytes) || bytes != head.left()) return std::nullopt;
      out.data_bytes = bytes;
      out.data = Rest(slices, head.at());
      return out;
    }
    if (tag == Tag(v1::BlockPart::kIndexFieldNumber, kVarint) && head.Varint(&value)) {
      out.index = static_cast<uint32_t>(value);
    } else if (tag == Tag(v1::BlockPart::kOffsetFieldNumber, kVarint) && head.Varint(&value)) {
      out.offset = value;
    } else if (tag == Tag(v1::BlockPart::kCrc32CFieldNumber, kFixed32) && head.Fixed32(&value)) {
      out.crc32c = static_cast<uint32_t>(value);
    } else {
      return std::nullopt;
    }
  }
  return std::nullopt;
}

grpc::ByteBuffer WritePutPart(uint32_t index, uint64_t offset, uint32_t crc32c,
                              const grpc::Slice& data) {
  std::string fields;
  PutNumber(v1::BlockPart::kIndexFieldNumber, index, &fields);
  PutNumber(v1::BlockPart::kOffsetFieldNumber, offset, &fields);
  PutFixed32(v1::BlockPart::kCrc32CFieldNumber, crc32c, &fields);
  return Write(v1::PutBlocksRequest::kPartFieldNumber, std::move(fields),
               v1::BlockPart::kDataFieldNumber, data);
}

grpc::ByteBuffer WriteGetPart(const v1::GetPart& part, const grpc::Slice& data) {
  return Write(v1::GetBlocksResponse::kPartFieldNumber, part.SerializeAsString(),
               v1::GetPart::kDataFieldNumber, data);
}

}  // namespace latticekv
