#include "core/base/sha256.h"

#include <openssl/evp.h>

namespace latticekv {

struct Sha256::Context {
  EVP_MD_CTX* evp = EVP_MD_CTX_new();
  ~Context() { EVP_MD_CTX_free(evp); }
};

Sha256::Sha256() : context_(std::make_unique<Context>()) {
  EVP_DigestInit_ex(context_->evp, EVP_sha256(), nullptr);
}
Sha256::~Sha256() = default;

Sha256& Sha256::Update(ByteSpan bytes) {
  EVP_DigestUpdate(context_->evp, bytes.data(), bytes.size());
  return *this;
}

Sha256& Sha256::Field(uint32_t tag, ByteSpan bytes) {
  std::array<std::byte, 12> head;
  StoreLe<uint32_t>(head.data(), tag);
  StoreLe<uint64_t>(head.data() + 4, bytes.size());
  return Update(head).Update(bytes);
}

Digest Sha256::Finish() {
  Digest out;
  EVP_DigestFinal_ex(context_->evp, reinterpret_cast<unsigned char*>(out.data()), nullptr);
  return out;
}

Digest Sha256Of(ByteSpan bytes) { return Sha256().Update(bytes).Finish(); }

}  // namespace latticekv
