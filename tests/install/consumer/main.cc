// A program that knows LatticeKV from its installed package alone: stores a cache and reads it
// back.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "latticekv/batching_writer.h"
#include "latticekv/client.h"
#include "latticekv/layerwise.h"

namespace {

int Fail(const char* what, const absl::Status& status) {
  std::fprintf(stderr, "%s: %s\n", what, std::string(status.message()).c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  auto client = latticekv::Connect(argv[1]);
  if (!client.ok()) return Fail("connect", client.status());
  const latticekv::Layout layout = latticekv::MakeUniformLayout(
      "consumer", 2, 1, 64, latticekv::DType::kF16, {latticekv::RopeStyle::kNeox, 64, 10000.0});
  auto registered = client->RegisterLayout({.layout = layout, .chunk_tokens = 32});
  if (!registered.ok()) return Fail("register", registered.status());

  constexpr uint32_t kTokens = 80;
  std::vector<uint32_t> tokens(kTokens);
  std::vector<std::vector<latticekv::ByteVector>> data(2);
  latticekv::PutRequest put;
  put.layout = *registered;
  for (uint32_t t = 0; t < kTokens; ++t) tokens[t] = t * 3;
  put.tokens = tokens;
  put.preset = latticekv::PresetId::kExact;
  for (uint32_t l = 0; l < 2; ++l) {
    auto& views = put.planes.emplace_back();
    for (uint32_t p = 0; p < 2; ++p) {
      const auto& spec = layout.layers[l].planes[p];
      auto& bytes = data[l].emplace_back(spec.token_bytes() * kTokens);
      for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = std::byte((i * 7 + l + p) & 0x3b);
      views.push_back(
          latticekv::ContiguousPlane(spec, static_cast<const std::byte*>(bytes.data())));
    }
  }
  const auto stored = client->PutPrefix(put);
  if (!stored.ok()) return Fail("put", stored.status());
  if (!stored->status().ok()) return Fail("block", stored->status());

  latticekv::GetRequest get;
  get.layout = *registered;
  for (const auto& block : stored->blocks) get.content_hashes.push_back(block.content_hash);
  const auto prefix = client->GetPrefix(get);
  if (!prefix.ok()) return Fail("get", prefix.status());
  for (uint32_t l = 0; l < 2; ++l) {
    for (uint32_t p = 0; p < 2; ++p) {
      if (prefix->planes[l][p] != data[l][p])
        return Fail("compare", absl::DataLossError("differs"));
    }
  }
  std::puts("same bytes");
  return 0;
}
