// SHA-256, incremental and tagged. Backed by OpenSSL.
#ifndef LATTICEKV_CORE_BASE_SHA256_H_
#define LATTICEKV_CORE_BASE_SHA256_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>

#include "core/base/bytes.h"

namespace latticekv {

using Digest = std::array<std::byte, 32>;

// Hash of a sequence of fields. Each Field() is preceded by its tag and length, so that no two
// different sequences of fields hash the same bytes. Not thread-safe.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  Sha256& Update(ByteSpan bytes);
  // u32 tag, u64 length, bytes.
  Sha256& Field(uint32_t tag, ByteSpan bytes);
  // The digest of all that was added; call once.
  Digest Finish();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

Digest Sha256Of(ByteSpan bytes);

// For hash maps keyed by digests, which are uniform already.
struct DigestHash {
  size_t operator()(const Digest& d) const { return LoadLe<size_t>(d.data()); }
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_BASE_SHA256_H_
