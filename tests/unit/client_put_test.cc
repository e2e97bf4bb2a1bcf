// Puts of the client library against a server in memory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "client/src/connection_impl.h"
#include "client/src/proto_convert.h"
#include "core/layout/chain_hash.h"
#include "latticekv/client.h"
#include "latticekv/error_detail.h"
#include "tests/support/fake_stub.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

using ::testing::ElementsAre;
using testing::FakeServer;
using testing::FakeStub;
using ::testing::HasSubstr;
using testing::MakeSampleChunk;
using testing::SampleChunk;

constexpr uint32_t kChunk = 16;

class ClientPutTest : public ::testing::Test {
 protected:
  void SetTokens(uint32_t tokens) {
    chunk_ = MakeSampleChunk(layout_, tokens, 1);
    ids_.resize(tokens);
    for (uint32_t t = 0; t < tokens; ++t) ids_[t] = 1000 + t * 7;
  }

  PutRequest Request() {
    PutRequest request;
    request.layout = {std::make_shared<const Layout>(layout_), LayoutFingerprint(layout_), "ns",
                      kChunk};
    request.tokens = ids_;
    request.planes = chunk_.views();
    return request;
  }

  absl::StatusOr<PutResult> Put(const PutRequest& request) {
    ConnectionImpl connection(std::make_shared<FakeStub>(server_), options_,
                              [this](int64_t ms) { delays_.push_back(ms); });
    return connection.PutPrefix(request);
  }

  // The payload of tokens [first, first + count) as the service expects it.
  std::string Payload(uint32_t first, uint32_t count) {
    std::string out;
    const auto views = chunk_.views();
    for (size_t l = 0; l < views.size(); ++l) {
      for (size_t p = 0; p < views[l].size(); ++p) {
        const size_t row = layout_.layers[l].planes[p].token_bytes();
        out.append(AsText({views[l][p].data + first * row, count * row}));
      }
    }
    return out;
  }

  std::vector<Digest> Hashes(std::string_view salt = "") {
    return ChainHashes(LayoutFingerprint(layout_), ids_, kChunk, salt);
  }

  Layout layout_ =
      MakeUniformLayout("model", 3, 2, 16, DType::kF16, {RopeStyle::kNeox, 16, 10000.0});
  SampleChunk chunk_;
  std::vector<uint32_t> ids_;
  FakeServer server_;
  ClientOptions options_;
  std::vector<int64_t> delays_;
};

TEST_F(ClientPutTest, CutsChunksAndSendsTheirBytes) {
  SetTokens(40);
  PutRequest request = Request();
  request.session = "chat";
  request.preset = PresetId::kTiny;
  request.durable = true;
  request.ttl_ms = 5000;
  request.salt = "lora";
  request.exact_positions = {1, 17, 39};
  const auto result = Put(request);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->status().ok());

  ASSERT_EQ(server_.opens.size(), 1u);
  EXPECT_EQ(server_.opens[0].namespace_(), "ns");
  EXPECT_EQ(server_.opens[0].session(), "chat");
  EXPECT_EQ(server_.opens[0].preset(), v1::PRESET_TINY);
  EXPECT_EQ(server_.opens[0].wait_for(), v1::BLOCK_STATE_DURABLE);
  EXPECT_EQ(server_.opens[0].ttl_ms(), 5000);

  const std::vector<Digest> hashes = Hashes("lora");
  ASSERT_EQ(server_.headers.size(), 3u);
  ASSERT_EQ(result->blocks.size(), 3u);
  const uint32_t sizes[] = {16, 16, 8};
  for (uint32_t i = 0; i < 3; ++i) {
    const v1::BlockHeader& header = server_.headers[i];
    EXPECT_EQ(header.content_hash(), BytesString(hashes[i]));
    EXPECT_EQ(header.parent_hash(), i == 0 ? "" : BytesString(hashes[i - 1]));
    EXPECT_EQ(header.start_position(), 16 * i);
    EXPECT_EQ(header.token_ids_size(), static_cast<int>(sizes[i]));
    EXPECT_EQ(header.salt(), "lora");
    EXPECT_EQ(server_.blocks[header.content_hash()], Payload(16 * i, sizes[i]));
    EXPECT_EQ(result->blocks[i].content_hash, hashes[i]);
    EXPECT_EQ(result->blocks[i].tokens, sizes[i]);
    EXPECT_FALSE(result->blocks[i].have_it);
  }
  EXPECT_THAT(server_.headers[0].exact_tokens(), ElementsAre(1));
  EXPECT_THAT(server_.headers[1].exact_tokens(), ElementsAre(1));
  EXPECT_THAT(server_.headers[2].exact_tokens(), ElementsAre(7));
  EXPECT_EQ(server_.bad_checksums, 0u);
  EXPECT_EQ(result->raw_bytes, layout_.token_bytes() * 40);
  EXPECT_EQ(result->sent_bytes, result->raw_bytes);
  EXPECT_TRUE(delays_.empty());
}

TEST_F(ClientPutTest, EvictionMassAndSeedSettings) {
  SetTokens(40);
  PutRequest request = Request();
  request.preset = PresetId::kSeed;
  request.seed = {4, 1, true, false};
  request.keep.assign(40, 1);
  request.keep[5] = request.keep[20] = 0;
  std::vector<float> mass(3 * 40);
  for (size_t i = 0; i < mass.size(); ++i) mass[i] = static_cast<float>(i);
  request.mass = {mass.data(), 40, 30};
  ASSERT_TRUE(Put(request).ok());
  EXPECT_EQ(server_.opens[0].seed().key_bits(), 4u);
  EXPECT_EQ(server_.opens[0].seed().value_bits(), 1u);
  EXPECT_TRUE(server_.opens[0].seed().group_scales());
  EXPECT_TRUE(server_.opens[0].seed().no_token_delta());
  const auto hashes = ChainHashes(LayoutFingerprint(layout_), ids_, kChunk, "", request.keep);
  ASSERT_EQ(server_.headers.size(), 3u);
  const uint64_t queries[] = {30, 14, 0};
  for (uint32_t i = 0; i < 3; ++i) {
    const v1::BlockHeader& header = server_.headers[i];
    EXPECT_EQ(header.content_hash(), BytesString(hashes[i]));
    EXPECT_NE(hashes[i], Hashes()[i]);  // of the last one only through its parents
    const int tokens = header.token_ids_size();
    ASSERT_EQ(header.keep().size(), static_cast<size_t>(tokens));
    for (int t = 0; t < tokens; ++t) {
      EXPECT_EQ(header.keep()[static_cast<size_t>(t)], request.keep[16 * i + t]);
    }
    ASSERT_EQ(header.attention_mass_size(), 3 * tokens);
    EXPECT_EQ(header.attention_mass(tokens), 40 + 16 * i);  // layer 1, the chunk's first token
    EXPECT_EQ(header.mass_queries(), queries[i]);
    // One measure for all chunks, of the tokens that stay.
    ASSERT_EQ(header.mass_levels_size(), 3);
    for (int l = 0; l < 3; ++l) {
      double sum = 0;
      for (uint32_t t = 4; t < 40; ++t) {
        const double mass_t = std::max(1e-4f, mass[static_cast<size_t>(l) * 40 + t]);
        if (request.keep[t]) sum += std::log2(mass_t / (std::max(30.0 - t, 0.0) + 32));
      }
      EXPECT_NEAR(header.mass_levels(l), sum / 34, 0.05);
    }
  }
  // From a later start on, mass begins there and the mask at position 0.
  server_.headers.clear();
  request.start = 16;
  for (auto& layer : request.planes) {
    for (PlaneView& view : layer) view.data += 16 * view.token_stride;
  }
  ASSERT_TRUE(Put(request).ok());
  ASSERT_EQ(server_.headers.size(), 2u);
  EXPECT_EQ(server_.headers[0].content_hash(), BytesString(hashes[1]));
  EXPECT_EQ(server_.headers[0].keep()[4], 0);
  EXPECT_EQ(server_.headers[0].attention_mass(0), 0);
  EXPECT_EQ(server_.headers[1].attention_mass(0), 16);
  // A writer that knows the text's levels is believed.
  server_.headers.clear();
  const std::vector<float> levels = {-3, 0.5f, 2};
  request.mass.levels = levels.data();
  ASSERT_TRUE(Put(request).ok());
  ASSERT_EQ(server_.headers.size(), 2u);
  for (const v1::BlockHeader& header : server_.headers) {
    EXPECT_THAT(header.mass_levels(), ElementsAre(-3, 0.5f, 2));
  }

  request.keep.resize(39);
  EXPECT_FALSE(Put(request).ok());
}

TEST_F(ClientPutTest, ReadsStridedTensors) {
  SetTokens(16);
  const std::string expected = Payload(0, 16);
  // [heads, tokens, head_dim] with a gap after every row.
  std::vector<ByteVector> storage;
  PutRequest request = Request();
  for (auto& layer : request.planes) {
    for (PlaneView& plane : layer) {
      const size_t head_bytes = 16 * 2, row = head_bytes + 6;
      ByteVector& copy = storage.emplace_back(2 * 16 * row);
      for (uint32_t t = 0; t < 16; ++t) {
        for (uint32_t h = 0; h < 2; ++h) {
          std::memcpy(copy.data() + (h * 16 + t) * row,
                      plane.data + t * plane.token_stride + h * plane.head_stride, head_bytes);
        }
      }
      plane = {nullptr, row, 16 * row};
    }
  }
  size_t next = 0;
  for (auto& layer : request.planes) {
    for (PlaneView& plane : layer) plane.data = storage[next++].data();
  }
  ASSERT_TRUE(Put(request).ok());
  EXPECT_EQ(server_.blocks[BytesString(Hashes()[0])], expected);
}

TEST_F(ClientPutTest, SendsLargeChunksInParts) {
  layout_ = MakeUniformLayout("model", 2, 64, 1024, DType::kF32, {RopeStyle::kNeox, 1024, 10000.0});
  SetTokens(16);  // 4 MiB a plane, 16 MiB in all
  ASSERT_TRUE(Put(Request()).ok());
  EXPECT_LE(server_.largest_part, limits::kMaxPartBytes);
  EXPECT_EQ(server_.parts, 4u);
  EXPECT_EQ(server_.bad_checksums, 0u);
  EXPECT_EQ(server_.blocks[BytesString(Hashes()[0])], Payload(0, 16));
}

TEST_F(ClientPutTest, DoesNotSendWhatTheServerHas) {
  SetTokens(48);
  server_.blocks[BytesString(Hashes()[1])] = "stored";
  const auto result = Put(Request());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_FALSE(result->blocks[0].have_it);
  EXPECT_TRUE(result->blocks[1].have_it);
  EXPECT_EQ(server_.blocks[BytesString(Hashes()[1])], "stored");
  EXPECT_EQ(result->sent_bytes, 2 * kChunk * layout_.token_bytes());
  EXPECT_EQ(result->raw_bytes, 3 * kChunk * layout_.token_bytes());
}

TEST_F(ClientPutTest, AppendsFromAStart) {
  SetTokens(40);
  PutRequest request = Request();
  request.start = 32;
  for (auto& layer : request.planes) {
    for (PlaneView& plane : layer) plane.data += 32 * plane.token_stride;
  }
  const auto result = Put(request);
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(server_.headers.size(), 1u);
  EXPECT_EQ(server_.headers[0].parent_hash(), BytesString(Hashes()[1]));
  EXPECT_EQ(server_.headers[0].start_position(), 32u);
  EXPECT_EQ(server_.blocks[BytesString(Hashes()[2])], Payload(32, 8));
}

TEST_F(ClientPutTest, KeepsTheWindowFullButNotFuller) {
  SetTokens(20 * kChunk);
  options_.max_inflight_blocks = 5;
  server_.hold_acks_until = 5;
  ASSERT_TRUE(Put(Request()).ok());
  EXPECT_EQ(server_.max_unacked, 5u);
  EXPECT_EQ(server_.blocks.size(), 20u);
}

TEST_F(ClientPutTest, BoundsTheBytesInFlight) {
  SetTokens(20 * kChunk);
  const uint64_t block_bytes = layout_.token_bytes() * kChunk;
  options_.max_inflight_bytes = 3 * block_bytes + 1;
  server_.hold_acks_until = 3;
  ASSERT_TRUE(Put(Request()).ok());
  EXPECT_EQ(server_.max_unacked_bytes, 3 * block_bytes);
}

TEST_F(ClientPutTest, ABlockLargerThanTheWindowGoesAlone) {
  SetTokens(3 * kChunk);
  options_.max_inflight_bytes = 1;
  options_.max_inflight_blocks = 0;
  ASSERT_TRUE(Put(Request()).ok());
  EXPECT_EQ(server_.max_unacked, 1u);
}

TEST_F(ClientPutTest, RefusedBlocksHaveTheServersReason) {
  SetTokens(48);
  v1::ErrorDetail detail;
  detail.set_reason(v1::REASON_MEMORY_FULL);
  detail.set_limit("memory_bytes");
  detail.set_message("the memory tier is full of pinned blocks; unpin some");
  server_.refuse[BytesString(Hashes()[1])] = detail;
  std::vector<uint64_t> seen;
  PutRequest request = Request();
  request.on_block = [&](const BlockResult& block) { seen.push_back(block.start_position); };
  const auto result = Put(request);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->blocks[0].status.ok());
  EXPECT_TRUE(result->blocks[2].status.ok());
  EXPECT_EQ(result->status().code(), absl::StatusCode::kResourceExhausted);
  const auto back = GetErrorDetail(result->blocks[1].status);
  ASSERT_TRUE(back.has_value());
  EXPECT_EQ(back->reason, ErrorReason::kMemoryFull);
  EXPECT_EQ(back->limit, "memory_bytes");
  EXPECT_EQ(result->raw_bytes, 2 * kChunk * layout_.token_bytes());
  EXPECT_EQ(seen.size(), 3u);
  EXPECT_TRUE(delays_.empty()) << "a full server is not asked again";
}

TEST_F(ClientPutTest, ABrokenStreamGoesOnWhereItStopped) {
  SetTokens(10 * kChunk);
  options_.max_inflight_blocks = 2;
  server_.break_after = {4, 0, 3};
  const auto result = Put(Request());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->status().ok());
  EXPECT_EQ(server_.blocks.size(), 10u);
  EXPECT_EQ(server_.opens.size(), 4u);
  EXPECT_EQ(delays_.size(), 3u);
  // No block that was acknowledged is announced again.
  std::map<std::string, int> announced;
  for (const v1::BlockHeader& header : server_.headers) ++announced[header.content_hash()];
  for (uint32_t i = 0; i < 4; ++i) EXPECT_EQ(announced[BytesString(Hashes()[i])], 1) << i;
}

TEST_F(ClientPutTest, GivesUpWhenThePolicySaysSo) {
  SetTokens(kChunk);
  server_.break_after = {0, 0, 0, 0};
  options_.retry_policy = std::make_shared<LimitedErrorCountRetryPolicy>(2);
  EXPECT_EQ(Put(Request()).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(server_.opens.size(), 3u);
}

TEST_F(ClientPutTest, BlocksRefusedWhileDrainingAreTriedAgain) {
  SetTokens(2 * kChunk);
  v1::ErrorDetail detail;
  detail.set_reason(v1::REASON_DRAINING);
  server_.refuse[BytesString(Hashes()[0])] = detail;
  options_.retry_policy = std::make_shared<LimitedErrorCountRetryPolicy>(1);
  const auto result = Put(Request());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->status().code(), absl::StatusCode::kUnavailable);
  EXPECT_GE(server_.opens.size(), 2u);
  server_.refuse.clear();
  EXPECT_TRUE(Put(Request())->status().ok());
}

TEST_F(ClientPutTest, BreaksOffASilentServer) {
  SetTokens(kChunk);
  server_.silent = true;
  options_.stream_idle_timeout_ms = 20;
  options_.retry_policy = std::make_shared<LimitedErrorCountRetryPolicy>(0);
  const auto result = Put(Request());
  EXPECT_EQ(result.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("no word from the server"));
}

TEST_F(ClientPutTest, RepliesOutOfTurnEndThePut) {
  SetTokens(2 * kChunk);
  v1::PutBlocksResponse credit, ack;
  credit.mutable_credit()->set_index(77);
  ack.mutable_ack()->set_index(1u << 31);
  for (const v1::PutBlocksResponse& reply : {credit, ack}) {
    server_.say_first = {reply};
    server_.silent = true;
    const auto result = Put(Request());
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(result.status().message()), HasSubstr("not due"));
  }
}

TEST_F(ClientPutTest, WrongRequestsNeverReachTheServer) {
  SetTokens(20);
  const auto error = [&](const std::function<void(PutRequest&)>& change) {
    PutRequest request = Request();
    change(request);
    const auto result = Put(request);
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(result.status().message());
  };
  EXPECT_THAT(error([](PutRequest& r) { r.layout.layout = nullptr; }), HasSubstr("register"));
  EXPECT_THAT(error([](PutRequest& r) { r.start = 8; }), HasSubstr("multiple"));
  EXPECT_THAT(error([](PutRequest& r) { r.start = 32; }), HasSubstr("none at or after"));
  EXPECT_THAT(error([](PutRequest& r) { r.tokens = {}; }), HasSubstr("there are 0 tokens"));
  EXPECT_THAT(error([](PutRequest& r) { r.planes.pop_back(); }), HasSubstr("2 layers"));
  EXPECT_THAT(error([](PutRequest& r) { r.planes[1].pop_back(); }), HasSubstr("layer 1"));
  EXPECT_THAT(error([](PutRequest& r) { r.planes[2][1].data = nullptr; }), HasSubstr("null"));
  EXPECT_THAT(error([](PutRequest& r) { r.layout.chunk_tokens = 8; }), HasSubstr("chunk_tokens"));
  EXPECT_TRUE(server_.opens.empty());
}

}  // namespace
}  // namespace latticekv
