// Little-endian access to bytes, with bounds checks that turn into a Status.
#ifndef LATTICEKV_CORE_BASE_BYTES_H_
#define LATTICEKV_CORE_BASE_BYTES_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace latticekv {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "formats are little-endian and read by memcpy");

using ByteSpan = std::span<const std::byte>;
using MutableByteSpan = std::span<std::byte>;
using ByteVector = std::vector<std::byte>;

// Reads a little-endian T at `p`, which need not be aligned.
template <typename T>
T LoadLe(const void* p) {
  static_assert(std::is_trivially_copyable_v<T>);
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

// Writes `value` little-endian at `p`, which need not be aligned.
template <typename T>
void StoreLe(void* p, T value) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::memcpy(p, &value, sizeof(T));
}

inline ByteSpan AsBytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}
inline std::string_view AsText(ByteSpan bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Lower-case hex of `bytes`.
std::string ToHex(ByteSpan bytes);
// Inverse of ToHex; INVALID_ARGUMENT when `hex` has odd length or another character.
absl::StatusOr<ByteVector> FromHex(std::string_view hex);

// Appends little-endian values to a buffer it owns. Not thread-safe.
class ByteWriter {
 public:
  template <typename T>
  void Put(T value) {
    const size_t at = out_.size();
    out_.resize(at + sizeof(T));
    StoreLe(out_.data() + at, value);
  }
  void PutBytes(ByteSpan bytes) { out_.insert(out_.end(), bytes.begin(), bytes.end()); }
  // A u32 length and then the bytes.
  void PutString(std::string_view text) {
    Put<uint32_t>(static_cast<uint32_t>(text.size()));
    PutBytes(AsBytes(text));
  }
  // Makes room for `bytes` more than there are.
  void Reserve(size_t bytes) { out_.reserve(out_.size() + bytes); }
  size_t size() const { return out_.size(); }
  std::byte* data() { return out_.data(); }
  ByteVector Take() { return std::move(out_); }
  const ByteVector& bytes() const { return out_; }

 private:
  ByteVector out_;
};

// Reads what ByteWriter writes. After the first read past the end every read gives zero and ok() is
// false, so callers may check once at the end of a record. Not thread-safe.
class ByteReader {
 public:
  explicit ByteReader(ByteSpan bytes) : bytes_(bytes) {}
  template <typename T>
  T Get() {
    if (bytes_.size() < sizeof(T)) {
      Fail();
      return T{};
    }
    T value = LoadLe<T>(bytes_.data());
    bytes_ = bytes_.subspan(sizeof(T));
    return value;
  }
  ByteSpan GetBytes(size_t size);
  // At most `max_size` bytes, or the reader fails.
  std::string GetString(size_t max_size);
  bool ok() const { return ok_; }
  size_t remaining() const { return bytes_.size(); }

 private:
  void Fail() {
    ok_ = false;
    bytes_ = {};
  }
  ByteSpan bytes_;
  bool ok_ = true;
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_BASE_BYTES_H_
