// GPU memory in the client library, against a server in memory: what is asked of it, leases that
// are lost, requests that make no sense.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/mocks/mock_connection.h"
#include "client/src/connection_impl.h"
#include "client/src/proto_convert.h"
#include "core/layout/chain_hash.h"
#include "latticekv/client.h"
#include "latticekv/error_detail.h"
#include "latticekv/layerwise.h"
#include "tests/support/fake_stub.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

using ::testing::ElementsAre;
using testing::FakeServer;
using testing::FakeStub;
using ::testing::HasSubstr;

constexpr uint32_t kChunk = 16, kBlocks = 40, kBlockTokens = 5;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

ErrorReason ReasonOf(const absl::Status& status) {
  return GetErrorDetail(status).value_or(ErrorDetail()).reason;
}

class ClientGpuMemoryTest : public ::testing::Test {
 protected:
  ClientGpuMemoryTest() {
    layout_ = MakeUniformLayout("model", 3, 2, 16, DType::kF16, {RopeStyle::kNeox, 16, 10000.0});
    layout_.layers[1].planes[1].head_dim = 24;
    registered_ = {std::make_shared<const Layout>(layout_), LayoutFingerprint(layout_), "ns",
                   kChunk};
    for (uint32_t t = 0; t < 40; ++t) ids_.push_back(1000 + t);
    for (uint32_t b = 0; b < 8; ++b) table_.push_back(30 - 3 * b);
  }
  Client MakeClient() {
    return Client(std::make_shared<ConnectionImpl>(stub_, options_,
                                                   [this](int64_t ms) { delays_.push_back(ms); }));
  }
  GpuCacheSpec Spec() {
    GpuMemory memory;
    memory.ipc_handle[63] = std::byte{7};
    memory.device_uuid[15] = std::byte{9};
    memory.offset = 512;
    memory.bytes = layout_.token_bytes() * kBlocks * kBlockTokens;
    return PagedGpuCache(registered_, {memory}, kBlocks, kBlockTokens, GpuCacheOrder::kHnd);
  }
  std::shared_ptr<GpuCache> OpenCache(Client& client) {
    auto cache = client.OpenGpuCache(Spec());
    EXPECT_TRUE(cache.ok()) << cache.status();
    return cache.ok() ? *cache : nullptr;
  }
  PutRequest Put(std::shared_ptr<GpuCache> cache) {
    PutRequest request;
    request.layout = registered_;
    request.tokens = ids_;
    request.gpu = {std::move(cache), table_};
    return request;
  }
  GetRequest Get(std::shared_ptr<GpuCache> cache) {
    GetRequest request;
    request.layout = registered_;
    request.content_hashes = Hashes();
    request.target = {std::move(cache), table_};
    return request;
  }
  std::vector<Digest> Hashes() { return ChainHashes(registered_.fingerprint, ids_, kChunk, ""); }
  v1::GetBlocksResponse Opened(uint32_t index) {
    v1::GetBlocksResponse message;
    message.mutable_open()->set_index(index);
    message.mutable_open()->mutable_block()->set_content_hash(BytesString(Hashes()[index]));
    message.mutable_open()->mutable_block()->set_tokens(index == 2 ? 8 : kChunk);
    return message;
  }
  static v1::GetBlocksResponse Placed(uint32_t index) {
    v1::GetBlocksResponse message;
    message.mutable_placed()->set_index(index);
    return message;
  }
  static v1::GetBlocksResponse Failed(uint32_t index, v1::Reason reason) {
    v1::GetBlocksResponse message;
    message.mutable_failed()->set_index(index);
    message.mutable_failed()->mutable_miss()->set_reason(reason);
    return message;
  }
  static absl::Status Gone() { return StatusFromDetail({ErrorReason::kRegionGone, "", "gone"}); }

  Layout layout_;
  RegisteredLayout registered_;
  std::vector<uint32_t> ids_, table_;
  FakeServer server_;
  std::shared_ptr<FakeStub> stub_ = std::make_shared<FakeStub>(server_);
  ClientOptions options_;
  std::vector<int64_t> delays_;
};

TEST_F(ClientGpuMemoryTest, HandsOverWhatTheSpecificationSays) {
  Client client = MakeClient();
  {
    const auto cache = OpenCache(client);
    EXPECT_EQ(server_.leases, 1);
    EXPECT_EQ(cache->spec().blocks, kBlocks);
  }
  EXPECT_EQ(server_.leases, 0);
  ASSERT_EQ(server_.region_requests.size(), 1u);
  const v1::CudaRegion& region = server_.region_requests[0].cuda();
  EXPECT_EQ(region.namespace_(), "ns");
  EXPECT_EQ(region.fingerprint(), BytesString(registered_.fingerprint));
  EXPECT_EQ(region.blocks(), kBlocks);
  EXPECT_EQ(region.block_tokens(), kBlockTokens);
  ASSERT_EQ(region.memories_size(), 1);
  EXPECT_EQ(region.memories(0).ipc_handle(), std::string(63, '\0') + "\7");
  EXPECT_EQ(region.memories(0).device_uuid(), std::string(15, '\0') + "\11");
  EXPECT_EQ(region.memories(0).offset(), 512u);
  ASSERT_EQ(region.planes_size(), 6);
  // The fourth plane, of 24 channels and 2 bytes each, behind three of 2 heads of 16.
  const v1::CudaPlane& plane = region.planes(3);
  EXPECT_EQ(plane.memory(), 0u);
  EXPECT_EQ(plane.offset(), 3u * 64 * kBlocks * kBlockTokens);
  EXPECT_EQ(plane.block_stride(), 96u * kBlockTokens);
  EXPECT_EQ(plane.token_stride(), 48u);
  EXPECT_EQ(plane.head_stride(), 48u * kBlockTokens);
}

TEST_F(ClientGpuMemoryTest, AMemoryForEachLayer) {
  const GpuCacheSpec spec = PagedGpuCache(registered_, std::vector<GpuMemory>(3), kBlocks,
                                          kBlockTokens, GpuCacheOrder::kNhd);
  for (uint32_t l = 0; l < 3; ++l) {
    EXPECT_EQ(spec.planes[l][1].memory, l);
    EXPECT_EQ(spec.planes[l][0].offset, 0u);
    EXPECT_EQ(spec.planes[l][1].offset, 64u * kBlocks * kBlockTokens);
  }
  EXPECT_EQ(spec.planes[1][1].token_stride, 96u);
  EXPECT_EQ(spec.planes[1][1].head_stride, 48u);
}

TEST_F(ClientGpuMemoryTest, ServersThatTakeNoneSayWhy) {
  Client client = MakeClient();
  for (const absl::Status& status :
       {absl::UnimplementedError("this daemon uses no GPU"),
        absl::FailedPreconditionError("GPU memory is handed over on a unix socket only")}) {
    server_.refuse_regions = {status};
    EXPECT_EQ(client.OpenGpuCache(Spec()).status(), status);
  }
  EXPECT_TRUE(delays_.empty());
  // One that is away for a while is asked again.
  server_.refuse_regions = {absl::UnavailableError("away"), absl::UnavailableError("away")};
  EXPECT_NE(OpenCache(client), nullptr);
  EXPECT_EQ(delays_.size(), 2u);
}

TEST_F(ClientGpuMemoryTest, SpecificationsThatDoNotFitTheirLayout) {
  Client client = MakeClient();
  const auto error = [&](const std::function<void(GpuCacheSpec&)>& change) {
    GpuCacheSpec spec = Spec();
    change(spec);
    const absl::Status status = client.OpenGpuCache(spec).status();
    EXPECT_EQ(status.code(), kInvalid);
    return std::string(status.message());
  };
  EXPECT_THAT(error([](GpuCacheSpec& s) { s.layout = {}; }), HasSubstr("register the layout"));
  EXPECT_THAT(error([](GpuCacheSpec& s) { s.planes.pop_back(); }), HasSubstr("2 layers"));
  EXPECT_THAT(error([](GpuCacheSpec& s) { s.planes[1].emplace_back(); }), HasSubstr("3 planes"));
  EXPECT_THAT(error([](GpuCacheSpec& s) { s.blocks = 0; }), HasSubstr("no blocks"));
  EXPECT_THAT(error([](GpuCacheSpec& s) { s.block_tokens = 0; }), HasSubstr("no blocks"));
  EXPECT_TRUE(server_.region_requests.empty());
}

TEST_F(ClientGpuMemoryTest, PutsNameTheBlocksOfTheirTokens) {
  options_.max_inflight_bytes = 1;  // bounds no bytes that lie on the GPU
  Client client = MakeClient();
  const auto cache = OpenCache(client);
  server_.blocks[BytesString(Hashes()[1])] = "stored already";
  server_.hold_acks_until = 3;
  size_t told = 0;
  PutRequest request = Put(cache);
  request.on_block = [&](const BlockResult&) { ++told; };
  const auto put = client.PutPrefix(request);
  ASSERT_TRUE(put.ok()) << put.status();
  EXPECT_TRUE(put->status().ok()) << put->status();
  EXPECT_EQ(told, 3u);
  EXPECT_TRUE(put->blocks[1].have_it);
  EXPECT_EQ(put->sent_bytes, 0u);
  EXPECT_EQ(server_.parts, 0u);
  ASSERT_EQ(server_.region_parts.size(), 2u);
  const v1::RegionPart& first = server_.region_parts[0];
  const v1::RegionPart& last = server_.region_parts[1];
  EXPECT_THAT(first.table().blocks(), ElementsAre(30, 27, 24, 21));
  EXPECT_EQ(first.table().first_position(), 0u);
  // Tokens 32 to 39 begin in the table's seventh block.
  EXPECT_EQ(last.index(), 2u);
  EXPECT_THAT(last.table().blocks(), ElementsAre(12, 9));
  EXPECT_EQ(last.table().first_position(), 30u);
  EXPECT_EQ(first.region_id(), *server_.regions.begin());
}

TEST_F(ClientGpuMemoryTest, TablesMayBeginBeforeTheTokensOfThePut) {
  Client client = MakeClient();
  PutRequest request = Put(OpenCache(client));
  request.start = 32;
  request.gpu.first_position = 13;  // block 3 has tokens 28 to 32
  const auto put = client.PutPrefix(request);
  ASSERT_TRUE(put.ok() && put->status().ok()) << put.status();
  ASSERT_EQ(server_.region_parts.size(), 1u);
  EXPECT_THAT(server_.region_parts[0].table().blocks(), ElementsAre(21, 18, 15));
  EXPECT_EQ(server_.region_parts[0].table().first_position(), 28u);
}

TEST_F(ClientGpuMemoryTest, BatchesMixMemories) {
  Client client = MakeClient();
  const auto sample = testing::MakeSampleChunk(layout_, 40, 1);
  const auto a = OpenCache(client), b = OpenCache(client);
  std::vector<PutRequest> requests = {Put(a), Put(b), Put(nullptr)};
  requests[2].planes = sample.views();
  for (size_t i = 0; i < 3; ++i) requests[i].salt = std::to_string(i);
  const auto put = client.PutBatch(requests);
  ASSERT_TRUE(put.ok()) << put.status();
  for (const PutResult& result : *put) EXPECT_TRUE(result.status().ok()) << result.status();
  ASSERT_EQ(server_.region_parts.size(), 6u);
  std::map<uint64_t, int> parts;
  for (const v1::RegionPart& part : server_.region_parts) ++parts[part.region_id()];
  EXPECT_THAT(parts, ElementsAre(std::pair(101, 3), std::pair(102, 3)));
  EXPECT_EQ((*put)[2].sent_bytes, layout_.token_bytes() * 40);
}

TEST_F(ClientGpuMemoryTest, BlocksThatTheGpuCannotEncodeSaySo) {
  Client client = MakeClient();
  const auto cache = OpenCache(client);
  server_.refuse[BytesString(Hashes()[1])].set_reason(v1::REASON_GPU);
  const auto put = client.PutPrefix(Put(cache));
  ASSERT_TRUE(put.ok()) << put.status();
  EXPECT_TRUE(put->blocks[0].status.ok());
  EXPECT_EQ(ReasonOf(put->blocks[1].status), ErrorReason::kGpu);
  EXPECT_TRUE(put->blocks[2].status.ok());
}

TEST_F(ClientGpuMemoryTest, PutsThatMakeNoSenseNeverReachTheServer) {
  Client client = MakeClient();
  const auto cache = OpenCache(client);
  const auto sample = testing::MakeSampleChunk(layout_, 40, 1);
  const auto error = [&](const std::function<void(PutRequest&)>& change) {
    PutRequest request = Put(cache);
    change(request);
    const absl::Status status = client.PutPrefix(request).status();
    EXPECT_EQ(status.code(), kInvalid);
    return std::string(status.message());
  };
  EXPECT_THAT(error([&](PutRequest& r) { r.planes = sample.views(); }), HasSubstr("not in both"));
  EXPECT_THAT(error([](PutRequest& r) { r.compress_on_worker = true; }),
              HasSubstr("out of host memory only"));
  EXPECT_THAT(error([](PutRequest& r) { r.gpu.blocks.pop_back(); }), HasSubstr("does not hold"));
  EXPECT_THAT(error([](PutRequest& r) { r.gpu.first_position = 1; }), HasSubstr("does not hold"));
  EXPECT_THAT(error([](PutRequest& r) { r.gpu.blocks[2] = kBlocks; }), HasSubstr("block 40"));
  EXPECT_THAT(error([](PutRequest& r) { r.layout.name_space = "other"; }),
              HasSubstr("another layout or namespace"));
  EXPECT_THAT(error([](PutRequest& r) { r.layout.fingerprint = {}; }),
              HasSubstr("another layout or namespace"));
  EXPECT_THAT(error([&](PutRequest& r) { r.gpu.cache = std::make_shared<GpuCache>(Spec()); }),
              HasSubstr("another client"));
  stub_ = std::make_shared<FakeStub>(server_);
  Client other = MakeClient();
  const auto others = OpenCache(other);
  EXPECT_THAT(error([&](PutRequest& r) { r.gpu.cache = others; }), HasSubstr("another client"));
  EXPECT_TRUE(server_.opens.empty());
}

TEST_F(ClientGpuMemoryTest, ALeaseThatIsLostIsHadAnew) {
  Client client = MakeClient();
  const auto cache = OpenCache(client);
  server_.regions.clear();
  const auto put = client.PutPrefix(Put(cache));
  ASSERT_TRUE(put.ok()) << put.status();
  EXPECT_TRUE(put->status().ok()) << put->status();
  EXPECT_EQ(server_.region_requests.size(), 2u);
  EXPECT_EQ(server_.leases, 1);
  EXPECT_TRUE(delays_.empty());

  stub_->gets.push_back({{}, Gone()});
  stub_->gets.push_back(
      {{Opened(0), Opened(1), Opened(2), Placed(0), Placed(1), Placed(2)}, absl::OkStatus()});
  const auto got = client.GetToGpu(Get(cache));
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_TRUE(got->status().ok()) << got->status();
  EXPECT_EQ(got->placed_tokens(), 40u);
  EXPECT_EQ(stub_->get_requests[0].target().region_id(), 102u);
  EXPECT_EQ(stub_->get_requests[1].target().region_id(), 103u);
}

// Not even then does a call go on for ever.
TEST_F(ClientGpuMemoryTest, AServerThatLosesEveryLeaseEndsTheCall) {
  Client client = MakeClient();
  const auto cache = OpenCache(client);
  class ForgetfulStub : public FakeStub {
   public:
    explicit ForgetfulStub(FakeServer& server) : FakeStub(server), server_(server) {}
    std::unique_ptr<PutStream> PutBlocks() override {
      server_.regions.clear();
      return FakeStub::PutBlocks();
    }

   private:
    FakeServer& server_;
  };
  stub_ = std::make_shared<ForgetfulStub>(server_);
  Client other = MakeClient();
  const auto own = OpenCache(other);
  const auto put = other.PutPrefix(Put(own));
  ASSERT_TRUE(put.ok()) << put.status();
  for (const BlockResult& block : put->blocks) {
    EXPECT_EQ(ReasonOf(block.status), ErrorReason::kRegionGone);
  }
  stub_->gets = {{{}, Gone()}, {{}, Gone()}};
  EXPECT_EQ(ReasonOf(other.GetToGpu(Get(own)).status()), ErrorReason::kRegionGone);
}

TEST_F(ClientGpuMemoryTest, GetsAreToldOfEachBlock) {
  Client client = MakeClient();
  const auto cache = OpenCache(client);
  v1::GetBlocksResponse miss;
  miss.mutable_open()->set_index(1);
  miss.mutable_open()->mutable_miss()->set_reason(v1::REASON_NOT_STORED);
  stub_->gets.push_back(
      {{Opened(0), miss, Opened(2), Failed(2, v1::REASON_GPU), Placed(0)}, absl::OkStatus()});
  const auto got = client.GetToGpu(Get(cache));
  ASSERT_TRUE(got.ok()) << got.status();
  ASSERT_EQ(got->blocks.size(), 3u);
  EXPECT_TRUE(got->blocks[0].status.ok());
  EXPECT_EQ(got->blocks[0].block.content_hash, Hashes()[0]);
  EXPECT_EQ(ReasonOf(got->blocks[1].status), ErrorReason::kNotStored);
  EXPECT_EQ(ReasonOf(got->blocks[2].status), ErrorReason::kGpu);
  EXPECT_EQ(got->status(), got->blocks[1].status);
  EXPECT_EQ(got->placed_tokens(), 16u);
  const v1::GetBlocksRequest& sent = stub_->get_requests[0];
  EXPECT_EQ(sent.target().region_id(), 101u);
  EXPECT_EQ(sent.target().table().blocks_size(), 8);
  EXPECT_FALSE(sent.has_window());
  EXPECT_EQ(sent.encoding(), v1::ENCODING_RAW);
}

TEST_F(ClientGpuMemoryTest, WordOfBlocksThatIsNotDueIsRefused) {
  Client client = MakeClient();
  const auto cache = OpenCache(client);
  const auto error = [&](std::vector<v1::GetBlocksResponse> extra) {
    std::vector<v1::GetBlocksResponse> stream = {Opened(0), Opened(1), Opened(2), Placed(0),
                                                 Placed(1)};
    stream.insert(stream.end(), extra.begin(), extra.end());
    stub_->gets.push_back({stream, absl::OkStatus()});
    const absl::Status status = client.GetToGpu(Get(cache)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    return std::string(status.message());
  };
  v1::GetBlocksResponse part;
  part.mutable_part();
  EXPECT_THAT(error({}), HasSubstr("no word of block 2"));
  EXPECT_THAT(error({Placed(1), Placed(2)}), HasSubstr("block 1, which is not due"));
  EXPECT_THAT(error({Placed(2), Placed(3)}), HasSubstr("block 3, which is not due"));
  EXPECT_THAT(error({Failed(0, v1::REASON_CORRUPT), Placed(2)}), HasSubstr("not due"));
  EXPECT_THAT(error({part, Placed(2)}), HasSubstr("bytes of a block"));
}

TEST_F(ClientGpuMemoryTest, GetsThatMakeNoSenseNeverReachTheServer) {
  Client client = MakeClient();
  const auto cache = OpenCache(client);
  const auto error = [&](const std::function<void(GetRequest&)>& change) {
    GetRequest request = Get(cache);
    change(request);
    const absl::Status status = client.GetToGpu(request).status();
    EXPECT_EQ(status.code(), kInvalid);
    return std::string(status.message());
  };
  EXPECT_THAT(error([](GetRequest& r) { r.decode_on_worker = true; }), HasSubstr("host memory"));
  EXPECT_THAT(error([](GetRequest& r) { r.first_layer = 1; }), HasSubstr("all layers"));
  EXPECT_THAT(error([](GetRequest& r) { r.layer_count = 2; }), HasSubstr("all layers"));
  EXPECT_THAT(error([](GetRequest& r) { r.target.blocks[0] = kBlocks; }), HasSubstr("block 40"));
  EXPECT_THAT(error([](GetRequest& r) { r.layout.name_space = "other"; }), HasSubstr("another"));
  EXPECT_THAT(error([](GetRequest& r) { r.target.cache = nullptr; }), HasSubstr("needs a target"));
  EXPECT_THAT(client.GetPrefix(Get(cache)).status().message(), HasSubstr("host memory"));
  EXPECT_TRUE(stub_->get_requests.empty());
}

// While the daemon may write to the memory the call does not return.
TEST_F(ClientGpuMemoryTest, AGetIsReadToItsEnd) {
  Client client = MakeClient();
  const auto cache = OpenCache(client);
  struct Stopping : public GetSink {
    absl::Status OnBlock(const ServedBlock&) override { return absl::AbortedError("stop"); }
    absl::StatusOr<MutablePlaneView> Destination(uint32_t, uint32_t, uint32_t) override {
      return MutablePlaneView{};
    }
    absl::Status OnLayer(uint32_t) override { return absl::OkStatus(); }
    absl::Status OnBlockFailed(uint32_t, const absl::Status&) override { return absl::OkStatus(); }
    absl::Status OnRestart() override { return absl::OkStatus(); }
  } sink;
  stub_->gets.push_back(
      {{Opened(0), Opened(1), Opened(2), Placed(0), Placed(1), Placed(2)}, absl::OkStatus()});
  EXPECT_EQ(client.Get(Get(cache), sink), absl::AbortedError("stop"));
  EXPECT_EQ(stub_->gets_cancelled, 0);
}

TEST_F(ClientGpuMemoryTest, ALayerwiseGetWaitsForAllBlocks) {
  Client client = MakeClient();
  const auto cache = OpenCache(client);
  struct Sink : public GetSink {
    absl::Status OnBlock(const ServedBlock&) override { return absl::OkStatus(); }
    absl::StatusOr<MutablePlaneView> Destination(uint32_t, uint32_t, uint32_t) override {
      return absl::InternalError("not asked for");
    }
    absl::Status OnLayer(uint32_t) override { return absl::InternalError("not told of"); }
    absl::Status OnBlockPlaced(uint32_t block) override {
      placed.push_back(block);
      return absl::OkStatus();
    }
    absl::Status OnBlockFailed(uint32_t, const absl::Status& why) override { return why; }
    absl::Status OnRestart() override { return absl::OkStatus(); }
    std::vector<uint32_t> placed;
  } sink;
  stub_->gets.push_back(
      {{Opened(0), Opened(1), Opened(2), Placed(1), Placed(0), Placed(2)}, absl::OkStatus()});
  LayerwiseGet get(client, Get(cache), sink);
  EXPECT_TRUE(get.WaitLayer(0).ok());
  EXPECT_THAT(sink.placed, ElementsAre(1, 0, 2));
  EXPECT_TRUE(get.Finish().ok());
}

TEST(MockConnectionTest, GivesOutCaches) {
  const auto connection = std::make_shared<MockConnection>();
  EXPECT_CALL(*connection, OpenGpuCache).WillOnce([](const GpuCacheSpec& spec) {
    return std::make_shared<GpuCache>(spec);
  });
  Client client(connection);
  GpuCacheSpec spec;
  spec.blocks = 3;
  const auto cache = client.OpenGpuCache(spec);
  ASSERT_TRUE(cache.ok());
  EXPECT_EQ((*cache)->spec().blocks, 3u);
}

}  // namespace
}  // namespace latticekv
