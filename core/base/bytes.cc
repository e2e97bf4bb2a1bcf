#include "core/base/bytes.h"

namespace latticekv {

std::string ToHex(ByteSpan bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  out.reserve(bytes.size() * 2);
  for (std::byte b : bytes) {
    out.push_back(kDigits[std::to_integer<unsigned>(b) >> 4]);
    out.push_back(kDigits[std::to_integer<unsigned>(b) & 15]);
  }
  return out;
}

absl::StatusOr<ByteVector> FromHex(std::string_view hex) {
  if (hex.size() % 2 != 0) return absl::InvalidArgumentError("hex text has an odd length");
  const auto digit = [](char c) -> int {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  ByteVector out(hex.size() / 2);
  for (size_t i = 0; i < out.size(); ++i) {
    const int high = digit(hex[2 * i]), low = digit(hex[2 * i + 1]);
    if (high < 0 || low < 0) return absl::InvalidArgumentError("text is not hex");
    out[i] = static_cast<std::byte>(high * 16 + low);
  }
  return out;
}

ByteSpan ByteReader::GetBytes(size_t size) {
  if (bytes_.size() < size) {
    Fail();
    return {};
  }
  ByteSpan out = bytes_.first(size);
  bytes_ = bytes_.subspan(size);
  return out;
}

std::string ByteReader::GetString(size_t max_size) {
  const size_t size = Get<uint32_t>();
  if (size > max_size) {
    Fail();
    return {};
  }
  return std::string(AsText(GetBytes(size)));
}

}  // namespace latticekv
