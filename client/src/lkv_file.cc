#include "client/src/lkv_file.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/src/token_codec.h"
#include "core/base/crc32c.h"
#include "core/base/status_macros.h"

namespace latticekv {
namespace {

constexpr size_t kCrcOffset = 12;
constexpr uint8_t kTokensI32 = 1, kTokensI64 = 2;

size_t ChunkCount(uint32_t tokens, uint32_t chunk_tokens) {
  return (size_t{tokens} + chunk_tokens - 1) / chunk_tokens;
}

absl::Status Damaged(const std::string& what) {
  return absl::DataLossError(absl::StrCat("the .lkv file is damaged: ", what));
}

absl::Status CheckHeader(const LkvHeader& header) {
  LKV_RETURN_IF_ERROR(ValidateLayout(header.layout));
  if (header.tokens == 0) return absl::InvalidArgumentError("a .lkv file needs at least one token");
  if (header.chunk_tokens < limits::kMinChunkTokens ||
      header.chunk_tokens > limits::kMaxChunkTokens) {
    return absl::InvalidArgumentError(absl::StrCat("chunks of ", header.chunk_tokens, " tokens; ",
                                                   limits::kMinChunkTokens, " to ",
                                                   limits::kMaxChunkTokens, " are possible"));
  }
  if (header.frame_bytes.size() != ChunkCount(header.tokens, header.chunk_tokens) ||
      (!header.token_ids.empty() && header.token_ids.size() != header.tokens)) {
    return absl::InvalidArgumentError("frames or token ids do not fit the number of tokens");
  }
  return absl::OkStatus();
}

uint32_t HeaderCrc(ByteSpan file, size_t header_bytes) {
  return Crc32c(file.subspan(kLkvFixedHeaderBytes, header_bytes), Crc32c(file.first(kCrcOffset)));
}

// Reads the variable part of a header. Sizes are compared with what is there before memory is
// taken.
class HeaderParser {
 public:
  explicit HeaderParser(ByteSpan bytes) : in_(bytes) {}

  absl::Status Parse(ParsedLkv& out) {
    LKV_RETURN_IF_ERROR(ReadLayout(out));
    ReadTokenPart(out);
    LKV_RETURN_IF_ERROR(ReadMetadata(out));
    LKV_RETURN_IF_ERROR(ReadProfile(out));
    LKV_RETURN_IF_ERROR(ReadFrameTable(out));
    return DecodeTokenPart(out);
  }

 private:
  // Bytes read since the last call.
  uint64_t Taken() { return std::exchange(before_, in_.remaining()) - in_.remaining(); }

  absl::Status ReadLayout(ParsedLkv& out) {
    before_ = in_.remaining();
    const ByteSpan bytes = in_.GetBytes(in_.Get<uint32_t>());
    if (!in_.ok()) return Damaged("its layout is cut off");
    LKV_ASSIGN_OR_RETURN(out.header.layout, ParseLayout(bytes));
    out.sizes.layout = Taken();
    return absl::OkStatus();
  }

  void ReadTokenPart(ParsedLkv& out) {
    out.header.tokens = in_.Get<uint32_t>();
    out.header.chunk_tokens = in_.Get<uint16_t>();
    token_dtype_ = in_.Get<uint8_t>();
    token_coding_ = static_cast<TokenCoding>(in_.Get<uint8_t>());
    coded_tokens_ = in_.GetBytes(in_.Get<uint32_t>());
    out.sizes.token_ids = Taken();
  }

  absl::Status ReadMetadata(ParsedLkv& out) {
    const uint32_t count = in_.Get<uint32_t>();
    for (uint32_t i = 0; i < count && in_.ok(); ++i) {
      std::string key = in_.GetString(limits::kMaxFileHeaderBytes);
      out.header.metadata[std::move(key)] = in_.GetString(limits::kMaxFileHeaderBytes);
    }
    if (!in_.ok()) return Damaged("its metadata is cut off");
    out.sizes.metadata = Taken();
    return absl::OkStatus();
  }

  absl::Status ReadProfile(ParsedLkv& out) {
    const ByteSpan packed = in_.GetBytes(in_.Get<uint32_t>());
    if (!in_.ok()) return Damaged("its profile is cut off");
    if (!packed.empty()) {
      LKV_ASSIGN_OR_RETURN(out.header.profile, ZstdDecompress(packed, limits::kMaxProfileBytes));
    }
    out.sizes.profile = Taken();
    return absl::OkStatus();
  }

  absl::Status ReadFrameTable(ParsedLkv& out) {
    const uint32_t count = in_.Get<uint32_t>();
    if (!in_.ok() || count > in_.remaining() / sizeof(uint32_t)) {
      return Damaged("its frame table is cut off");
    }
    for (uint32_t i = 0; i < count; ++i) out.header.frame_bytes.push_back(in_.Get<uint32_t>());
    out.sizes.frame_table = Taken();
    return absl::OkStatus();
  }

  // After the frame table, which bounds the number of tokens by bytes that are really there.
  absl::Status DecodeTokenPart(ParsedLkv& out) {
    LkvHeader& header = out.header;
    if (token_coding_ != TokenCoding::kNone && header.tokens > 0 &&
        header.frame_bytes.size() * limits::kMaxChunkTokens >= header.tokens) {
      LKV_ASSIGN_OR_RETURN(header.token_ids,
                           DecodeTokens(token_coding_, coded_tokens_, header.tokens));
    }
    if (token_dtype_ > kTokensI64 || (token_dtype_ == 0) != header.token_ids.empty()) {
      return Damaged("its token ids contradict their type");
    }
    header.token_dtype = token_dtype_ == kTokensI64 ? TensorDType::kI64 : TensorDType::kI32;
    if (absl::Status status = CheckHeader(header); !status.ok()) {
      return Damaged(std::string(status.message()));
    }
    return absl::OkStatus();
  }

  ByteReader in_;
  size_t before_ = 0;
  uint8_t token_dtype_ = 0;
  TokenCoding token_coding_ = TokenCoding::kNone;
  ByteSpan coded_tokens_;
};

}  // namespace

absl::StatusOr<ByteVector> SerializeLkvHeader(const LkvHeader& header) {
  LKV_RETURN_IF_ERROR(CheckHeader(header));
  ByteWriter out;
  out.Put(kLkvMagic);
  out.Put(kLkvMajor);
  out.Put(kLkvMinor);
  out.Put<uint16_t>(0);
  out.Put<uint32_t>(0);  // header bytes, below
  out.Put<uint32_t>(0);  // checksum, below
  out.PutString(AsText(SerializeLayout(header.layout)));
  const CodedTokens ids = EncodeTokens(header.token_ids);
  out.Put(header.tokens);
  out.Put(static_cast<uint16_t>(header.chunk_tokens));
  const uint8_t dtype = header.token_dtype == TensorDType::kI64 ? kTokensI64 : kTokensI32;
  out.Put<uint8_t>(header.token_ids.empty() ? 0 : dtype);
  out.Put(static_cast<uint8_t>(ids.coding));
  out.PutString(AsText(ids.bytes));
  out.Put(static_cast<uint32_t>(header.metadata.size()));
  for (const auto& [key, value] : header.metadata) {
    out.PutString(key);
    out.PutString(value);
  }
  out.PutString(header.profile.empty() ? std::string_view() : AsText(ZstdCompress(header.profile)));
  out.Put(static_cast<uint32_t>(header.frame_bytes.size()));
  for (uint32_t size : header.frame_bytes) out.Put(size);
  const size_t header_bytes = out.size() - kLkvFixedHeaderBytes;
  if (header_bytes > limits::kMaxFileHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("token ids, metadata and profile take ", header_bytes,
                     " bytes, more than kMaxFileHeaderBytes, ", limits::kMaxFileHeaderBytes));
  }
  StoreLe(out.data() + 8, static_cast<uint32_t>(header_bytes));
  StoreLe(out.data() + kCrcOffset, HeaderCrc(out.bytes(), header_bytes));
  return out.Take();
}

absl::StatusOr<ParsedLkv> ParseLkv(ByteSpan file) {
  ByteReader fixed(file);
  if (fixed.Get<uint32_t>() != kLkvMagic) return absl::DataLossError("not a .lkv file");
  const uint8_t major = fixed.Get<uint8_t>(), minor = fixed.Get<uint8_t>();
  const uint16_t reserved = fixed.Get<uint16_t>();
  const uint32_t header_bytes = fixed.Get<uint32_t>(), crc = fixed.Get<uint32_t>();
  if (!fixed.ok()) return Damaged("it is cut off");
  if (major != kLkvMajor) {
    return absl::UnimplementedError(absl::StrCat("the .lkv file has version ", major, ".", minor,
                                                 "; this program reads version ", kLkvMajor));
  }
  if (header_bytes > fixed.remaining() || header_bytes > limits::kMaxFileHeaderBytes) {
    return Damaged("its header is cut off");
  }
  if (reserved != 0 || HeaderCrc(file, header_bytes) != crc) {
    return Damaged("its header has a wrong checksum");
  }
  ParsedLkv out;
  LKV_RETURN_IF_ERROR(HeaderParser(file.subspan(kLkvFixedHeaderBytes, header_bytes)).Parse(out));
  ByteSpan rest = file.subspan(kLkvFixedHeaderBytes + header_bytes);
  for (uint32_t size : out.header.frame_bytes) {
    if (size > rest.size()) return Damaged("its frames are cut off");
    out.frames.push_back(rest.first(size));
    rest = rest.subspan(size);
  }
  if (!rest.empty()) return Damaged("there are bytes after its last frame");
  return out;
}

absl::StatusOr<LkvFile> OpenLkv(const std::string& path) {
  LKV_ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  absl::StatusOr<ParsedLkv> content = ParseLkv(file.bytes());
  if (!content.ok()) {
    return absl::Status(content.status().code(),
                        absl::StrCat("'", path, "': ", std::string(content.status().message())));
  }
  return LkvFile{std::move(file), *std::move(content)};
}

absl::Status WriteLkv(const std::string& path, LkvHeader header,
                      const std::vector<ByteVector>& frames) {
  header.frame_bytes.clear();
  for (const ByteVector& frame : frames) {
    if (frame.size() > limits::kMaxFrameBytes) {
      return absl::InternalError("a frame is larger than kMaxFrameBytes");
    }
    header.frame_bytes.push_back(static_cast<uint32_t>(frame.size()));
  }
  LKV_ASSIGN_OR_RETURN(const ByteVector head, SerializeLkvHeader(header));
  std::vector<ByteSpan> parts = {head};
  parts.insert(parts.end(), frames.begin(), frames.end());
  return WriteFileAtomically(path, parts);
}

absl::StatusOr<FrameDecoder> OpenLkvFrame(const ParsedLkv& file, size_t index,
                                          const ModelProfile* profile, CodecBackend backend) {
  const LkvHeader& header = file.header;
  LKV_ASSIGN_OR_RETURN(FrameDecoder decoder,
                       FrameDecoder::Open(file.frames[index], header.layout, profile, backend));
  const uint64_t start = uint64_t{index} * header.chunk_tokens;
  const uint64_t tokens = std::min<uint64_t>(header.chunk_tokens, header.tokens - start);
  if (decoder.info().start_position != start || decoder.info().tokens != tokens) {
    return Damaged(absl::StrCat("frame ", index, " holds other tokens than it should"));
  }
  return decoder;
}

}  // namespace latticekv
