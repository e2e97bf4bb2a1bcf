// Messages whose only large field is a payload, written and read around it: protobuf on the wire,
// but the payload is neither copied into a message nor out of one.
#ifndef LATTICEKV_PROTO_PART_WIRE_H_
#define LATTICEKV_PROTO_PART_WIRE_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "core/base/bytes.h"
#include "latticekv/v1/blocks.pb.h"

namespace latticekv {

// A BlockPart whose data lie in `slices`, piece by piece.
struct PutPartView {
  uint32_t index = 0;
  uint64_t offset = 0;
  uint32_t crc32c = 0;
  std::vector<ByteSpan> data;
  size_t data_bytes = 0;
};

// Reads a PutBlocksRequest that holds a BlockPart with its fields in the order of their numbers.
// Nothing: it holds something else, or is written in another way (any parser may read it then). The
// view refers to `slices`.
std::optional<PutPartView> ReadPutPart(const std::vector<grpc::Slice>& slices);

// A PutBlocksRequest with this part; it shares `data`.
grpc::ByteBuffer WritePutPart(uint32_t index, uint64_t offset, uint32_t crc32c,
                              const grpc::Slice& data);

// A GetBlocksResponse with `part`, which has no data, and these; it shares `data`.
grpc::ByteBuffer WriteGetPart(const v1::GetPart& part, const grpc::Slice& data);

// A slice of bytes that live as long as `owner`.
template <typename Owner>
grpc::Slice OwningSlice(ByteSpan bytes, Owner owner) {
  return grpc::Slice(
      const_cast<std::byte*>(bytes.data()), bytes.size(),
      [](void* held) { delete static_cast<Owner*>(held); }, new Owner(std::move(owner)));
}

// `message` as one byte buffer.
template <typename Message>
grpc::ByteBuffer ToByteBuffer(const Message& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

// False when `buffer` is not a Message.
template <typename Message>
bool FromSlices(const std::vector<grpc::Slice>& slices, Message* message) {
  std::string whole;
  for (const grpc::Slice& slice : slices) {
    whole.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return message->ParseFromString(whole);
}

}  // namespace latticekv

#endif  // LATTICEKV_PROTO_PART_WIRE_H_
