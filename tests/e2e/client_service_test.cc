// The client library against a real daemon: shared memory, batching, layer-wise
// gets, frames made by the worker, cancellation, deadlines, the breaker.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <thread>

#include "client/src/proto_convert.h"
#include "client/src/region_client.h"
#include "client/src/stub.h"
#include "core/base/crc32c.h"
#include "core/layout/chain_hash.h"
#include "latticekv/batching_writer.h"
#include "latticekv/client.h"
#include "latticekv/error_detail.h"
#include "latticekv/layerwise.h"
#include "tests/support/daemon_process.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

using testing::MakeSampleChunk;
using testing::SampleChunk;

constexpr uint32_t kChunk = 16;
constexpr uint32_t kTokens = 70;  // 4 chunks of 16 and a tail

class ClientServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    layout_ = MakeUniformLayout("test", 3, 2, 64, DType::kF16, {RopeStyle::kNeox, 64, 10000.0});
    sample_ = MakeSampleChunk(layout_, kTokens, 1);
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
    out.payload = AsText(MakeSampleChunk(layout_, kChunk, first_id).raw);
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
  SampleChunk sample_;
  std::vector<uint32_t> ids_;
};

TEST_F(ClientServiceTest, PutsTheSameBytesWithAndWithoutSharedMemory) {
  for (const size_t bytes : {size_t{0}, size_t{1} << 20}) {
    StartServer();
    Client client = ConnectWith({.shared_memory_bytes = bytes});
    const RegisteredLayout layout = RegisterWith(client);
    auto put = client.PutPrefix(Request(layout));
    ASSERT_TRUE(put.ok()) << put.status();
    ASSERT_TRUE(put->status().ok()) << put->status();
    ExpectStored(client, layout);
  }
}

TEST_F(ClientServiceTest, ABlockLargerThanTheRegionGoesOverTheSocket) {
  Client client = ConnectWith({.shared_memory_bytes = 4096});
  const RegisteredLayout layout = RegisterWith(client);
  auto put = client.PutPrefix(Request(layout));
  ASSERT_TRUE(put.ok() && put->status().ok()) << put.status();
  ExpectStored(client, layout);
}

TEST_F(ClientServiceTest, AServerWithoutSharedMemoryIsReachedOverTheSocket) {
  StartServer({"--shared_memory_bytes=0"});
  Client client = ConnectWith({});
  const RegisteredLayout layout = RegisterWith(client);
  auto put = client.PutPrefix(Request(layout));
  ASSERT_TRUE(put.ok() && put->status().ok()) << put.status();
  ExpectStored(client, layout);
}

// What a hostile or broken client can write into a RegionPart.
TEST_F(ClientServiceTest, HostileRegionPartsHarmTheirOwnBlockOnly) {
  auto stub = MakeGrpcStub(Address(), {});
  ASSERT_TRUE(stub.ok());
  RegionClient regions(**stub, 1 << 20);
  const auto region = regions.Region();
  ASSERT_NE(region, nullptr);
  Client client = ConnectWith({});
  RegisterWith(client);
  const Block block = MakeBlock(5000);
  std::memcpy(region->at(0), block.payload.data(), block.payload.size());
  const uint32_t crc = Crc32c(AsBytes(block.payload));
  struct Case {
    uint64_t id, offset;
    uint32_t crc;
    bool stored;
  };
  const Case cases[] = {{region->id() + 1, 0, crc, false},
                        {region->id(), region->bytes(), crc, false},
                        {region->id(), region->bytes() - 8, crc, false},
                        {region->id(), ~uint64_t{0} - 8, crc, false},
                        {region->id(), 64, crc, false},
                        {region->id(), 0, crc + 1, false},
                        {region->id(), 0, crc, true}};
  for (const Case& one : cases) {
    auto stream = (*stub)->PutBlocks();
    v1::PutBlocksRequest message;
    *message.mutable_open() = Open();
    ASSERT_TRUE(stream->Write(message));
    *message.mutable_header() = block.header;
    ASSERT_TRUE(stream->Write(message));
    v1::PutBlocksResponse answer;
    ASSERT_TRUE(stream->Read(answer));
    ASSERT_TRUE(answer.has_credit()) << answer.DebugString();
    message.mutable_region_part()->set_index(block.header.index());
    message.mutable_region_part()->set_region_id(one.id);
    message.mutable_region_part()->set_region_offset(one.offset);
    message.mutable_region_part()->set_crc32c(one.crc);
    ASSERT_TRUE(stream->Write(message));
    ASSERT_TRUE(stream->Read(answer));
    ASSERT_TRUE(answer.has_ack());
    EXPECT_EQ(!answer.ack().has_error(), one.stored) << answer.DebugString();
    stream->WritesDone();
    EXPECT_FALSE(stream->Read(answer));
    EXPECT_TRUE(stream->Finish().ok());
  }
}

TEST_F(ClientServiceTest, AScribblingClientHarmsItsOwnBlockOnly) {
  auto stub = MakeGrpcStub(Address(), {});
  ASSERT_TRUE(stub.ok());
  RegionClient regions(**stub, 1 << 20);
  const auto region = regions.Region();
  ASSERT_NE(region, nullptr);
  Client client = ConnectWith({});
  const RegisteredLayout layout = RegisterWith(client);
  const size_t payload_bytes = layout_.token_bytes() * kChunk;
  std::atomic<bool> stop{false};
  std::thread scribbler([&] {
    for (uint32_t i = 0; !stop; ++i) *region->at(i % payload_bytes) ^= std::byte{1};
  });
  auto stream = (*stub)->PutBlocks();
  v1::PutBlocksRequest message;
  *message.mutable_open() = Open();
  ASSERT_TRUE(stream->Write(message));
  size_t stored = 0;
  for (uint32_t i = 0; i < 10; ++i) {
    const Block block = MakeBlock(6000 + 100 * i);
    std::memcpy(region->at(0), block.payload.data(), block.payload.size());
    *message.mutable_header() = block.header;
    ASSERT_TRUE(stream->Write(message));
    v1::PutBlocksResponse answer;
    ASSERT_TRUE(stream->Read(answer));
    message.mutable_region_part()->set_index(block.header.index());
    message.mutable_region_part()->set_region_id(region->id());
    message.mutable_region_part()->set_crc32c(Crc32c(AsBytes(block.payload)));
    ASSERT_TRUE(stream->Write(message));
    ASSERT_TRUE(stream->Read(answer));
    ASSERT_TRUE(answer.has_ack());
    if (answer.ack().has_error()) {
      EXPECT_EQ(answer.ack().error().reason(), v1::REASON_BAD_PAYLOAD);
      continue;
    }
    // Acknowledged: then it is the right one.
    ++stored;
    GetRequest get;
    get.layout = layout;
    get.content_hashes = {block.hash};
    const auto got = client.GetPrefix(get);
    ASSERT_TRUE(got.ok() && got->miss.ok()) << got.status();
    std::string bytes;
    for (const auto& planes : got->planes) {
      for (const ByteVector& plane : planes) bytes += AsText(plane);
    }
    EXPECT_EQ(bytes, block.payload);
  }
  stop = true;
  scribbler.join();
  stream->WritesDone();
  v1::PutBlocksResponse answer;
  EXPECT_FALSE(stream->Read(answer));
  EXPECT_TRUE(stream->Finish().ok());
  RecordProperty("stored", static_cast<int>(stored));
}

TEST_F(ClientServiceTest, TheRegionCannotBeCutUnderTheServer) {
  auto stub = MakeGrpcStub(Address(), {});
  ASSERT_TRUE(stub.ok());
  RegionClient regions(**stub, 1 << 20);
  ASSERT_NE(regions.Region(), nullptr);
  // The daemon's own descriptor, as good as the one that a client is given.
  int found = 0;
  const std::string folder = "/proc/" + std::to_string(daemon_.pid()) + "/fd";
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::error_code failed;
    const auto target = std::filesystem::read_symlink(entry.path(), failed).string();
    if (target.find("latticekv-region") == std::string::npos) continue;
    ++found;
    const int region = open(entry.path().c_str(), O_RDWR | O_CLOEXEC);
    ASSERT_GE(region, 0);
    EXPECT_NE(ftruncate(region, 0), 0);
    EXPECT_NE(ftruncate(region, 2 << 20), 0);
    close(region);
  }
  EXPECT_GT(found, 0);
}

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
