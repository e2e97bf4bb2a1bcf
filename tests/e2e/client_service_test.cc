// The client library against a real daemon: batching, layer-wise gets, frames made by the worker,
// cancellation, deadlines, the breaker.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <thread>

#include "latticekv/batching_writer.h"
#include "latticekv/error_detail.h"
#include "latticekv/layerwise.h"
#include "tests/e2e/client_service_fixture.h"

namespace latticekv {
namespace {

TEST_F(ClientServiceTest, FramesMadeByTheWorkerAreStored) {
  Client client = ConnectWith({});
  const RegisteredLayout layout = RegisterWith(client);
  PutRequest request = Request(layout);
  request.compress_on_worker = true;
  auto put = client.PutPrefix(request);
  ASSERT_TRUE(put.ok() && put->status().ok()) << put.status();
  EXPECT_EQ(put->sent_bytes, put->stored_bytes);
  ExpectStored(client, layout);
}

TEST_F(ClientServiceTest, FramesThatTheWorkerDecodesGiveTheServersBytes) {
  Client writer = ConnectWith({}), reader = ConnectWith({});
  const ModelProfile profile = testing::MakeSampleProfile(layout_, 1, true);
  auto registered = writer.RegisterLayout(
      {.layout = layout_, .profile = SerializeProfile(profile), .chunk_tokens = kChunk});
  ASSERT_TRUE(registered.ok()) << registered.status();
  // The reader has no profile of its own and gets it from the server.
  const RegisteredLayout layout = RegisterWith(reader);
  ASSERT_EQ(layout.profile, nullptr);
  for (const PresetId preset : {PresetId::kExact, PresetId::kSmall}) {
    PutRequest put = Request(*registered);
    put.preset = preset;
    put.salt = std::string(PresetName(preset));
    auto stored = writer.PutPrefix(put);
    ASSERT_TRUE(stored.ok() && stored->status().ok()) << stored.status();
    GetRequest get;
    get.layout = layout;
    for (const BlockResult& block : stored->blocks)
      get.content_hashes.push_back(block.content_hash);
    for (const uint32_t first : {0u, 1u}) {
      get.first_layer = first;
      get.layer_count = first;
      get.decode_on_worker = false;
      const auto raw = reader.GetPrefix(get);
      get.decode_on_worker = true;
      const auto decoded = reader.GetPrefix(get);
      ASSERT_TRUE(raw.ok() && decoded.ok()) << raw.status() << decoded.status();
      EXPECT_EQ(raw->tokens.size(), kTokens);
      EXPECT_EQ(raw->tokens, decoded->tokens);
      EXPECT_TRUE(raw->planes == decoded->planes) << PresetName(preset) << " " << first;
    }
  }
}

TEST_F(ClientServiceTest, ABatchOfPutsGoesOverOneStream) {
  Client client = ConnectWith({});
  const RegisteredLayout layout = RegisterWith(client);
  std::vector<std::vector<uint32_t>> tokens;
  for (uint32_t i = 0; i < 20; ++i) tokens.push_back(Ids(10000 + 100 * i, kTokens));
  std::vector<PutRequest> requests;
  for (const auto& ids : tokens) {
    requests.push_back(Request(layout));
    requests.back().tokens = ids;
  }
  auto results = client.PutBatch(requests);
  ASSERT_TRUE(results.ok()) << results.status();
  ASSERT_EQ(results->size(), 20u);
  for (const PutResult& result : *results) {
    EXPECT_TRUE(result.status().ok());
    EXPECT_EQ(result.blocks.size(), 5u);
  }
  requests.back().preset = PresetId::kTiny;
  EXPECT_TRUE(absl::IsInvalidArgument(client.PutBatch(requests).status()));
}

TEST_F(ClientServiceTest, TheWriterMergesSmallBlocksIntoChunks) {
  Client client = ConnectWith({});
  const RegisteredLayout layout = RegisterWith(client);
  BatchTarget target;
  target.layout = layout;
  target.preset = PresetId::kExact;
  BatchingWriter writer(client, target, {.max_delay_ms = 60'000});
  std::vector<std::future<absl::Status>> futures;
  constexpr uint32_t kStep = 7;  // not a divisor of the chunk
  for (uint32_t at = 0; at < kTokens; at += kStep) {
    auto planes = sample_.views();
    for (auto& layer : planes) {
      for (PlaneView& view : layer) view.data += at * view.token_stride;
    }
    futures.push_back(
        writer.Append(1, std::span(ids_).subspan(at, std::min(kStep, kTokens - at)), planes));
  }
  writer.End(1);
  for (auto& future : futures) EXPECT_TRUE(future.get().ok());
  EXPECT_EQ(writer.counters().chunks_sent, 5u);
  EXPECT_EQ(writer.counters().pending_bytes, 0u);
  ExpectStored(client, layout);
}

TEST_F(ClientServiceTest, TheWriterSendsATailWhenItsDelayIsOverAndBoundsItsMemory) {
  Client client = ConnectWith({});
  BatchTarget target;
  target.layout = RegisterWith(client);
  target.preset = PresetId::kExact;
  const size_t bytes = layout_.token_bytes() * 8;
  BatchingWriter writer(client, target, {.max_delay_ms = 1, .max_pending_bytes = bytes});
  const auto first = std::span(ids_).subspan(0, 8);
  auto future = writer.Append(1, first, sample_.views());
  EXPECT_TRUE(future.get().ok());  // without End or Flush
  EXPECT_EQ(client.Lookup({.layout = target.layout, .tokens = first})->usable_tokens, 8u);
  EXPECT_TRUE(absl::IsResourceExhausted(writer.Append(2, ids_, sample_.views()).get()));
  EXPECT_EQ(writer.counters().dropped_appends, 1u);
}

TEST_F(ClientServiceTest, LayersAreUsedWhileOthersAreOnTheirWay) {
  Client client = ConnectWith({});
  const RegisteredLayout layout = RegisterWith(client);
  auto put = client.PutPrefix(Request(layout));
  ASSERT_TRUE(put.ok() && put->status().ok());
  struct Sink : GetSink {
    absl::Status OnBlock(const ServedBlock& block) override { return block.miss; }
    absl::StatusOr<MutablePlaneView> Destination(uint32_t, uint32_t, uint32_t) override {
      return MutablePlaneView{};
    }
    absl::Status OnLayer(uint32_t layer) override {
      // The next layer stands still until this one was used.
      while (layer > used.load()) std::this_thread::yield();
      return absl::OkStatus();
    }
    absl::Status OnBlockFailed(uint32_t, const absl::Status& why) override { return why; }
    absl::Status OnRestart() override { return absl::OkStatus(); }
    std::atomic<uint32_t> used{0};
  } sink;
  GetRequest get;
  get.layout = layout;
  for (const BlockResult& block : put->blocks) get.content_hashes.push_back(block.content_hash);
  LayerwiseGet reading(client, get, sink);
  for (uint32_t layer = 0; layer < layout_.layers.size(); ++layer) {
    ASSERT_TRUE(reading.WaitLayer(layer).ok());
    sink.used = layer + 1;
  }
  EXPECT_TRUE(reading.Finish().ok());
}

TEST_F(ClientServiceTest, ACancelledOrLateCallEnds) {
  Client client = ConnectWith({.max_inflight_blocks = 1});
  PutRequest request = Request(RegisterWith(client));
  request.cancel = CancelToken::Make();
  request.cancel.Cancel();
  EXPECT_TRUE(absl::IsCancelled(client.PutPrefix(request).status()));
  GetRequest get;
  get.layout = request.layout;
  get.session = "none";
  get.cancel = request.cancel;
  EXPECT_TRUE(absl::IsCancelled(client.GetPrefix(get).status()));
  // A put that is held up in the middle, by a callback that waits.
  request.cancel = {};
  request.timeout_ms = 50;
  request.on_block = [](const BlockResult&) {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  };
  const auto late = client.PutPrefix(request);
  EXPECT_TRUE(absl::IsDeadlineExceeded(late.status())) << late.status();
}

TEST_F(ClientServiceTest, AServerThatIsAwayIsAMissUntilItComesBack) {
  Client client = ConnectWith({.circuit_breaker = true, .breaker_probe_ms = 10});
  const RegisteredLayout layout = RegisterWith(client, "ours");
  daemon_.Kill();
  const auto look = [&] { return client.Lookup({.layout = layout, .tokens = ids_}); };
  ASSERT_TRUE(look().ok());  // opens the breaker
  const auto start = std::chrono::steady_clock::now();
  constexpr int kCalls = 1000;
  for (int i = 0; i < kCalls; ++i) {
    const auto found = look();
    ASSERT_TRUE(found.ok());
    EXPECT_EQ(found->usable_tokens, 0u);
    ASSERT_TRUE(absl::IsUnavailable(found->miss));
  }
  const auto per_call_us =
      std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count() /
      kCalls;
  RecordProperty("us_per_call", std::to_string(per_call_us));
  const auto put = client.PutPrefix(Request(layout));
  ASSERT_TRUE(put.ok());
  EXPECT_TRUE(absl::IsUnavailable(put->status()));
  EXPECT_EQ(put->blocks.size(), 5u);
  GetRequest get;
  get.layout = layout;
  get.content_hashes.resize(3);
  const auto prefix = client.GetPrefix(get);
  ASSERT_TRUE(prefix.ok());
  EXPECT_TRUE(absl::IsUnavailable(prefix->miss));

  StartServer();
  // A new daemon knows no layouts: the client registers again by itself.
  ASSERT_TRUE(testing::Eventually([&] {
    const auto again = client.PutPrefix(Request(layout));
    return again.ok() && again->status().ok();
  }));
  ExpectStored(client, layout);
}

}  // namespace
}  // namespace latticekv
