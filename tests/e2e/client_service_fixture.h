// A real daemon beside the test, a layout and a sequence's planes, for tests of the client library.
#ifndef LATTICEKV_TESTS_E2E_CLIENT_SERVICE_FIXTURE_H_
#define LATTICEKV_TESTS_E2E_CLIENT_SERVICE_FIXTURE_H_

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "client/src/proto_convert.h"
#include "client/src/region_client.h"
#include "core/layout/chain_hash.h"
#include "latticekv/client.h"
#include "tests/support/daemon_process.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {

inline constexpr uint32_t kChunk = 16;
inline constexpr uint32_t kTokens = 70;  // 4 chunks of 16 and a tail

class ClientServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    layout_ = MakeUniformLayout("test", 3, 2, 64, DType::kF16, {RopeStyle::kNeox, 64, 10000.0});
    sample_ = testing::MakeSampleChunk(layout_, kTokens, 1);
    ids_ = Ids(1000, kTokens);
    StartServer();
  }
  void StartServer(const std::vector<std::string>& flags = {}) {
    ASSERT_TRUE(daemon_.Start(flags));
  }
  std::string Address() { return daemon_.address(); }
  static std::vector<uint32_t> Ids(uint32_t first, uint32_t count) {
    std::vector<uint32_t> out(count);
    for (uint32_t i = 0; i < count; ++i) out[i] = first + i;
    return out;
  }
  // A chunk of its own as the wire wants it.
  struct Block {
    v1::BlockHeader header;
    std::string payload;
    Digest hash;
  };
  Block MakeBlock(uint32_t first_id) {
    Block out;
    const std::vector<uint32_t> ids = Ids(first_id, kChunk);
    out.payload = AsText(testing::MakeSampleChunk(layout_, kChunk, first_id).raw);
    out.hash = ChainHashes(LayoutFingerprint(layout_), ids, kChunk, "")[0];
    out.header.set_content_hash(BytesString(out.hash));
    out.header.mutable_token_ids()->Add(ids.begin(), ids.end());
    out.header.set_payload_bytes(out.payload.size());
    return out;
  }
  v1::PutOpen Open() {
    v1::PutOpen open;
    open.set_fingerprint(BytesString(LayoutFingerprint(layout_)));
    open.set_preset(v1::PRESET_EXACT);
    return open;
  }
  Client ConnectWith(ClientOptions options) {
    auto client = Connect(Address(), std::move(options));
    EXPECT_TRUE(client.ok()) << client.status();
    return *client;
  }
  // A region of the daemon's; a lease that took too long is asked for again.
  static std::shared_ptr<ClientRegion> Lease(RegionClient& regions) {
    std::shared_ptr<ClientRegion> out;
    EXPECT_TRUE(testing::Eventually([&] { return (out = regions.Region()) != nullptr; }));
    return out;
  }
  RegisteredLayout RegisterWith(Client& client, const std::string& name_space = "") {
    auto layout = client.RegisterLayout(
        {.name_space = name_space, .layout = layout_, .chunk_tokens = kChunk});
    EXPECT_TRUE(layout.ok()) << layout.status();
    return *layout;
  }
  PutRequest Request(const RegisteredLayout& layout) {
    PutRequest request;
    request.layout = layout;
    request.tokens = ids_;
    request.planes = sample_.views();
    request.preset = PresetId::kExact;
    return request;
  }
  // The stored blocks of ids_ are bit for bit what was put.
  void ExpectStored(Client& client, const RegisteredLayout& layout) {
    auto found = client.Lookup({.layout = layout, .tokens = ids_});
    ASSERT_TRUE(found.ok()) << found.status();
    ASSERT_EQ(found->usable_tokens, ids_.size()) << found->miss;
    GetRequest get;
    get.layout = layout;
    for (const LookupBlock& block : found->blocks) {
      get.content_hashes.push_back(block.block.content_hash);
    }
    auto prefix = client.GetPrefix(get);
    ASSERT_TRUE(prefix.ok()) << prefix.status();
    const auto views = sample_.views();
    for (size_t l = 0; l < views.size(); ++l) {
      for (size_t p = 0; p < views[l].size(); ++p) {
        const ByteVector& got = prefix->planes[l][p];
        ASSERT_EQ(got.size(), layout_.layers[l].planes[p].token_bytes() * kTokens);
        EXPECT_EQ(std::memcmp(got.data(), views[l][p].data, got.size()), 0) << l << " " << p;
      }
    }
  }

  testing::DaemonProcess daemon_;
  Layout layout_;
  testing::SampleChunk sample_;
  std::vector<uint32_t> ids_;
};

}  // namespace latticekv

#endif  // LATTICEKV_TESTS_E2E_CLIENT_SERVICE_FIXTURE_H_
