// Policies, calls that are not streams, gets, and the mock of a connection.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/mocks/mock_connection.h"
#include "client/src/connection_impl.h"
#include "client/src/get_operation.h"
#include "client/src/proto_convert.h"
#include "core/base/crc32c.h"
#include "latticekv/client.h"
#include "latticekv/error_detail.h"
#include "tests/support/fake_stub.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

using testing::FakeServer;
using testing::FakeStub;
using ::testing::HasSubstr;
using testing::MakeSampleChunk;
using ::testing::Return;
using testing::SampleChunk;

const absl::Status kGone = absl::UnavailableError("gone");

TEST(RetryPolicyTest, ErrorCount) {
  const LimitedErrorCountRetryPolicy prototype(2);
  for (int round = 0; round < 2; ++round) {
    const auto policy = prototype.Clone();
    EXPECT_TRUE(policy->OnFailure(kGone));
    EXPECT_TRUE(policy->OnFailure(kGone));
    EXPECT_FALSE(policy->OnFailure(kGone));
  }
  EXPECT_FALSE(prototype.Clone()->OnFailure(absl::NotFoundError("no")));
  EXPECT_FALSE(prototype.Clone()->OnFailure(absl::ResourceExhaustedError("full")));
}

TEST(RetryPolicyTest, Time) {
  ManualClock clock;
  const LimitedTimeRetryPolicy prototype(1000, &clock);
  clock.Advance(5000);
  const auto policy = prototype.Clone();
  EXPECT_TRUE(policy->OnFailure(kGone));
  clock.Advance(999);
  EXPECT_TRUE(policy->OnFailure(kGone));
  EXPECT_FALSE(policy->OnFailure(absl::InternalError("bug")));
  clock.Advance(1);
  EXPECT_FALSE(policy->OnFailure(kGone));
}

TEST(BackoffPolicyTest, GrowsToItsMaximumWithJitter) {
  const ExponentialBackoffPolicy prototype(100, 1000);
  const auto policy = prototype.Clone();
  for (int64_t full : {100, 200, 400, 800, 1000, 1000}) {
    const int64_t delay = policy->NextDelayMs();
    EXPECT_GE(delay, full / 2);
    EXPECT_LE(delay, full);
  }
  EXPECT_LE(prototype.Clone()->NextDelayMs(), 100);
}

TEST(ErrorDetailTest, TravelsInAStatus) {
  const absl::Status status =
      StatusFromDetail({ErrorReason::kLimit, "kMaxLayouts", "too many layouts; drop one"});
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  const auto detail = GetErrorDetail(status);
  ASSERT_TRUE(detail.has_value());
  EXPECT_EQ(detail->reason, ErrorReason::kLimit);
  EXPECT_EQ(detail->limit, "kMaxLayouts");
  EXPECT_EQ(detail->message, "too many layouts; drop one");
  EXPECT_FALSE(GetErrorDetail(kGone).has_value());
  EXPECT_TRUE(WithErrorDetail(absl::OkStatus(), {}).ok());
  EXPECT_EQ(ErrorReasonName(ErrorReason::kNotStored), "NOT_STORED");
  EXPECT_EQ(ErrorReasonName(static_cast<ErrorReason>(99)), "REASON_99");
}

TEST(ConnectTest, ChecksAddresses) {
  for (const char* good :
       {"unix:/tmp/x.sock", "unix:x", "localhost:1", "127.0.0.1:65535", "[::1]:5000"}) {
    EXPECT_TRUE(Connect(good).ok()) << good;
  }
  for (const char* bad : {"", "unix:", "localhost", ":1", "a:0", "a:65536", "a:b", "a:"}) {
    EXPECT_EQ(Connect(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST(ProtoConvertTest, LayoutsComeBackAndHostileOnesDoNot) {
  Layout layout =
      MakeUniformLayout("model", 6, 2, 64, DType::kBF16, {RopeStyle::kInterleaved, 32, 1e6});
  layout.layers[3].planes[0].rope.base = 10000;
  const auto back = FromProto(ToProto(layout));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(*back, layout);
  v1::Layout hostile = ToProto(layout);
  hostile.mutable_layers(0)->set_repeat(UINT32_MAX);
  EXPECT_FALSE(FromProto(hostile).ok());
  hostile = ToProto(layout);
  hostile.mutable_layers(0)->mutable_planes(0)->set_dtype(static_cast<v1::DType>(7));
  EXPECT_FALSE(FromProto(hostile).ok());
  EXPECT_FALSE(FromProto(v1::Layout()).ok());
}

class ClientTest : public ::testing::Test {
 protected:
  static constexpr uint32_t kTokens = 5;

  ClientTest() {
    layout_ = MakeUniformLayout("model", 3, 2, 16, DType::kF16, {RopeStyle::kNeox, 16, 10000.0});
    layout_.layers[1].planes[1].head_dim = 24;
    registered_ = {std::make_shared<const Layout>(layout_), LayoutFingerprint(layout_), "ns", 16};
    for (uint64_t seed : {1, 2}) chunks_.push_back(MakeSampleChunk(layout_, kTokens, seed));
  }

  Client MakeClient() {
    return Client(std::make_shared<ConnectionImpl>(stub_, options_,
                                                   [this](int64_t ms) { delays_.push_back(ms); }));
  }

  static Digest HashOf(uint32_t index) {
    Digest hash{};
    hash[0] = static_cast<std::byte>(index + 1);
    return hash;
  }

  GetRequest Request() {
    GetRequest request;
    request.layout = registered_;
    request.content_hashes = {HashOf(0), HashOf(1)};
    return request;
  }

  v1::GetBlocksResponse Open(uint32_t index) {
    v1::GetBlocksResponse message;
    v1::BlockOpen& open = *message.mutable_open();
    open.set_index(index);
    open.mutable_block()->set_content_hash(BytesString(HashOf(index)));
    open.mutable_block()->set_tokens(kTokens);
    open.mutable_block()->set_start_position(index * kTokens);
    for (uint32_t t = 0; t < kTokens; ++t) open.add_token_ids(100 * index + t);
    return message;
  }

  static v1::GetBlocksResponse Miss(uint32_t index, v1::Reason reason) {
    v1::GetBlocksResponse message;
    message.mutable_open()->set_index(index);
    message.mutable_open()->mutable_miss()->set_reason(reason);
    message.mutable_open()->mutable_miss()->set_message("not here");
    return message;
  }

  // The parts of one layer of a block, at most `part_bytes` each.
  std::vector<v1::GetBlocksResponse> Layer(uint32_t index, uint32_t layer,
                                           size_t part_bytes = 100) {
    std::vector<v1::GetBlocksResponse> out;
    size_t offset = 0;
    for (uint32_t l = 0; l <= layer; ++l) {
      for (uint32_t p = 0; p < 2; ++p) {
        const size_t size = layout_.layers[l].planes[p].token_bytes() * kTokens;
        for (size_t at = 0; l == layer && at < size; at += part_bytes) {
          const size_t count = std::min(part_bytes, size - at);
          v1::GetPart& part = *out.emplace_back().mutable_part();
          part.set_index(index);
          part.set_layer(l);
          part.set_plane(p);
          part.set_offset(offset + at);
          part.set_data(BytesString(ByteSpan(chunks_[index].raw).subspan(offset + at, count)));
          part.set_crc32c(Crc32c(AsBytes(part.data())));
        }
        offset += size;
      }
    }
    return out;
  }

  std::vector<v1::GetBlocksResponse> GoodStream() {
    std::vector<v1::GetBlocksResponse> out = {Open(0), Open(1)};
    for (uint32_t l = 0; l < 3; ++l) {
      for (uint32_t b = 0; b < 2; ++b) {
        for (auto& part : Layer(b, l)) out.push_back(std::move(part));
      }
    }
    return out;
  }

  // Bytes of one plane of one block.
  std::string PlaneBytes(uint32_t index, uint32_t layer, uint32_t plane) {
    const PlaneView view = chunks_[index].views()[layer][plane];
    return BytesString({view.data, layout_.layers[layer].planes[plane].token_bytes() * kTokens});
  }

  Layout layout_;
  RegisteredLayout registered_;
  std::vector<SampleChunk> chunks_;
  FakeServer server_;
  std::shared_ptr<FakeStub> stub_ = std::make_shared<FakeStub>(server_);
  ClientOptions options_;
  std::vector<int64_t> delays_;
};

TEST_F(ClientTest, RegistersALayout) {
  stub_->register_layout = [&](const v1::RegisterLayoutRequest& request) {
    EXPECT_EQ(request.namespace_(), "ns");
    EXPECT_EQ(request.profile(), "abc");
    v1::RegisterLayoutResponse response;
    response.set_fingerprint(BytesString(LayoutFingerprint(*FromProto(request.layout()))));
    response.set_chunk_tokens(64);
    return response;
  };
  const ByteSpan profile = AsBytes("abc");
  const auto layout =
      MakeClient().RegisterLayout({"ns", layout_, {profile.begin(), profile.end()}});
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(layout->fingerprint, LayoutFingerprint(layout_));
  EXPECT_EQ(layout->chunk_tokens, 64u);
  EXPECT_EQ(*layout->layout, layout_);
}

TEST_F(ClientTest, DistrustsTheServersRegistration) {
  v1::RegisterLayoutResponse response;
  stub_->register_layout = [&](const v1::RegisterLayoutRequest&) { return response; };
  response.set_chunk_tokens(64);
  response.set_fingerprint("other");
  EXPECT_FALSE(MakeClient().RegisterLayout({"ns", layout_}).ok());
  response.set_fingerprint(BytesString(LayoutFingerprint(layout_)));
  EXPECT_TRUE(MakeClient().RegisterLayout({"ns", layout_}).ok());
  response.set_chunk_tokens(257);
  EXPECT_FALSE(MakeClient().RegisterLayout({"ns", layout_}).ok());
}

TEST_F(ClientTest, RepeatsCallsThatFindNobody) {
  int calls = 0;
  stub_->stats = [&]() -> absl::StatusOr<v1::StatsResponse> {
    if (++calls < 4) return kGone;
    v1::StatsResponse response;
    response.set_blocks(7);
    return response;
  };
  options_.backoff_policy = std::make_shared<ExponentialBackoffPolicy>(100, 1000);
  const auto stats = MakeClient().Stats();
  ASSERT_TRUE(stats.ok()) << stats.status();
  EXPECT_EQ(stats->blocks, 7u);
  ASSERT_EQ(delays_.size(), 3u);
  EXPECT_GE(delays_[2], 200);

  calls = 0;
  options_.retry_policy = std::make_shared<LimitedErrorCountRetryPolicy>(1);
  EXPECT_EQ(MakeClient().Stats().status(), kGone);
  EXPECT_EQ(calls, 2);
}

TEST_F(ClientTest, DoesNotRepeatOtherErrors) {
  int calls = 0;
  stub_->stats = [&]() -> absl::StatusOr<v1::StatsResponse> {
    ++calls;
    return absl::PermissionDeniedError("no");
  };
  EXPECT_FALSE(MakeClient().Stats().ok());
  EXPECT_EQ(calls, 1);
  EXPECT_TRUE(delays_.empty());
}

TEST_F(ClientTest, LooksUpAPrefix) {
  const std::vector<uint32_t> ids(20, 3);
  v1::LookupResponse response;
  v1::LookupBlock& block = *response.add_blocks();
  *block.mutable_block() = Open(0).open().block();
  block.mutable_block()->set_tokens(16);
  block.set_usable_tokens(16);
  response.set_miss_reason(v1::REASON_OTHER_LAYOUT);
  response.set_miss_message("stored under another layout");
  stub_->lookup = [&](const v1::LookupRequest& request) {
    EXPECT_EQ(request.token_ids_size(), 20);
    EXPECT_EQ(request.fingerprint(), BytesString(registered_.fingerprint));
    return response;
  };
  LookupRequest request;
  request.layout = registered_;
  request.tokens = ids;
  const auto result = MakeClient().Lookup(request);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->usable_tokens, 16u);
  EXPECT_EQ(GetErrorDetail(result->miss)->reason, ErrorReason::kOtherLayout);

  *response.add_blocks() = block;  // 32 usable tokens of 20
  EXPECT_FALSE(MakeClient().Lookup(request).ok());
  const std::vector<uint32_t> many(limits::kMaxLookupTokens + 1);
  request.tokens = many;
  EXPECT_EQ(MakeClient().Lookup(request).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ClientTest, GetsAPrefix) {
  stub_->gets.push_back({GoodStream(), absl::OkStatus()});
  const auto prefix = MakeClient().GetPrefix(Request());
  ASSERT_TRUE(prefix.ok()) << prefix.status();
  EXPECT_TRUE(prefix->miss.ok());
  EXPECT_EQ(prefix->blocks.size(), 2u);
  EXPECT_EQ(prefix->tokens, (std::vector<uint32_t>{0, 1, 2, 3, 4, 100, 101, 102, 103, 104}));
  ASSERT_EQ(prefix->planes.size(), 3u);
  for (uint32_t l = 0; l < 3; ++l) {
    for (uint32_t p = 0; p < 2; ++p) {
      EXPECT_EQ(BytesString(prefix->planes[l][p]), PlaneBytes(0, l, p) + PlaneBytes(1, l, p));
    }
  }
}

TEST_F(ClientTest, LayersOfOneBlockMayComeBeforeThoseOfAnother) {
  std::vector<v1::GetBlocksResponse> stream = {Open(0), Open(1)};
  const auto add = [&](uint32_t block, uint32_t layer) {
    for (auto& part : Layer(block, layer)) stream.push_back(std::move(part));
  };
  add(1, 0);
  add(1, 1);
  add(0, 0);
  add(1, 2);
  add(0, 1);
  add(0, 2);
  stub_->gets.push_back({stream, absl::OkStatus()});
  const auto prefix = MakeClient().GetPrefix(Request());
  ASSERT_TRUE(prefix.ok()) << prefix.status();
  EXPECT_TRUE(stub_->get_requests[0].unordered_layers());
  for (uint32_t l = 0; l < 3; ++l) {
    for (uint32_t p = 0; p < 2; ++p) {
      EXPECT_EQ(BytesString(prefix->planes[l][p]), PlaneBytes(0, l, p) + PlaneBytes(1, l, p));
    }
  }

  struct LayerSink : GetSink {
    absl::Status OnBlock(const ServedBlock&) override { return absl::OkStatus(); }
    absl::StatusOr<MutablePlaneView> Destination(uint32_t, uint32_t layer, uint32_t) override {
      calls.push_back(absl::StrCat("to ", layer));
      return MutablePlaneView{};
    }
    absl::Status OnLayer(uint32_t layer) override {
      calls.push_back(absl::StrCat("layer ", layer));
      return absl::OkStatus();
    }
    absl::Status OnBlockFailed(uint32_t block, const absl::Status&) override {
      calls.push_back(absl::StrCat("failed ", block));
      return absl::OkStatus();
    }
    absl::Status OnRestart() override { return absl::OkStatus(); }
    std::vector<std::string> calls;
  };
  // Only who asked for it gets it.
  LayerSink in_order;
  stub_->gets.push_back({stream, absl::OkStatus()});
  EXPECT_EQ(MakeClient().Get(Request(), in_order).code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(stub_->get_requests[1].unordered_layers());

  // A layer is told of when the last block has it, in order; a block that fails holds up none.
  GetRequest request = Request();
  request.unordered_layers = true;
  LayerSink unordered;
  stub_->gets.push_back({stream, absl::OkStatus()});
  ASSERT_TRUE(MakeClient().Get(request, unordered).ok());
  EXPECT_EQ(unordered.calls, (std::vector<std::string>{
                                 "to 0", "to 0", "to 1", "to 1", "to 0", "to 0", "layer 0", "to 2",
                                 "to 2", "to 1", "to 1", "layer 1", "to 2", "to 2", "layer 2"}));
  stream.resize(2);
  for (uint32_t l = 0; l < 3; ++l) add(1, l);
  v1::GetBlocksResponse failed;
  failed.mutable_failed()->set_index(0);
  failed.mutable_failed()->mutable_miss()->set_reason(v1::REASON_CORRUPT);
  stream.push_back(failed);
  LayerSink one_failed;
  stub_->gets.push_back({stream, absl::OkStatus()});
  ASSERT_TRUE(MakeClient().Get(request, one_failed).ok());
  EXPECT_EQ(one_failed.calls,
            (std::vector<std::string>{"to 0", "to 0", "to 1", "to 1", "to 2", "to 2", "failed 0",
                                      "layer 0", "layer 1", "layer 2"}));
}

TEST_F(ClientTest, APrefixEndsBeforeTheFirstMiss) {
  std::vector<v1::GetBlocksResponse> stream = {Open(0), Miss(1, v1::REASON_NOT_STORED)};
  for (uint32_t l = 0; l < 3; ++l) {
    for (auto& part : Layer(0, l)) stream.push_back(std::move(part));
  }
  stub_->gets.push_back({stream, absl::OkStatus()});
  const auto prefix = MakeClient().GetPrefix(Request());
  ASSERT_TRUE(prefix.ok()) << prefix.status();
  EXPECT_EQ(prefix->miss.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(prefix->blocks.size(), 1u);
  EXPECT_EQ(BytesString(prefix->planes[2][1]), PlaneBytes(0, 2, 1));
}

TEST_F(ClientTest, ABlockThatFailsMidwayCutsThePrefix) {
  std::vector<v1::GetBlocksResponse> stream = {Open(0), Open(1)};
  const auto add = [&](uint32_t block, uint32_t layer) {
    for (auto& part : Layer(block, layer)) stream.push_back(std::move(part));
  };
  add(0, 0);
  add(1, 0);
  add(0, 1);
  v1::GetBlocksResponse failed;
  failed.mutable_failed()->set_index(1);
  failed.mutable_failed()->mutable_miss()->set_reason(v1::REASON_CORRUPT);
  stream.push_back(failed);
  add(0, 2);
  stub_->gets.push_back({stream, absl::OkStatus()});
  const auto prefix = MakeClient().GetPrefix(Request());
  ASSERT_TRUE(prefix.ok()) << prefix.status();
  EXPECT_EQ(prefix->miss.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(prefix->tokens.size(), kTokens);
  for (uint32_t l = 0; l < 3; ++l) {
    EXPECT_EQ(BytesString(prefix->planes[l][0]), PlaneBytes(0, l, 0)) << l;
  }
}

TEST_F(ClientTest, APrefixEndsBeforeABlockThatDoesNotFollow) {
  auto apart = Open(1);
  apart.mutable_open()->mutable_block()->set_start_position(7 * kTokens);
  std::vector<v1::GetBlocksResponse> stream = {Open(0), apart};
  for (uint32_t l = 0; l < 3; ++l) {
    for (uint32_t b = 0; b < 2; ++b) {
      for (auto& part : Layer(b, l)) stream.push_back(std::move(part));
    }
  }
  stub_->gets.push_back({stream, absl::OkStatus()});
  const auto prefix = MakeClient().GetPrefix(Request());
  ASSERT_TRUE(prefix.ok()) << prefix.status();
  EXPECT_EQ(prefix->miss.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(prefix->blocks.size(), 1u);
  EXPECT_EQ(prefix->tokens.size(), kTokens);
  EXPECT_EQ(BytesString(prefix->planes[2][1]), PlaneBytes(0, 2, 1));
}

TEST_F(ClientTest, GetsALayerRange) {
  std::vector<v1::GetBlocksResponse> stream = {Open(0), Open(1)};
  for (uint32_t b = 0; b < 2; ++b) {
    for (auto& part : Layer(b, 1)) stream.push_back(std::move(part));
  }
  stub_->gets.push_back({stream, absl::OkStatus()});
  GetRequest request = Request();
  request.first_layer = 1;
  request.layer_count = 1;
  const auto prefix = MakeClient().GetPrefix(request);
  ASSERT_TRUE(prefix.ok()) << prefix.status();
  ASSERT_EQ(prefix->planes.size(), 1u);
  EXPECT_EQ(BytesString(prefix->planes[0][1]), PlaneBytes(0, 1, 1) + PlaneBytes(1, 1, 1));
  EXPECT_EQ(stub_->get_requests[0].first_layer(), 1u);
}

TEST_F(ClientTest, ABrokenGetBeginsAnew) {
  std::vector<v1::GetBlocksResponse> half = GoodStream();
  half.resize(half.size() / 2);
  stub_->gets.push_back({half, kGone});
  stub_->gets.push_back({GoodStream(), absl::OkStatus()});
  const auto prefix = MakeClient().GetPrefix(Request());
  ASSERT_TRUE(prefix.ok()) << prefix.status();
  EXPECT_EQ(prefix->tokens.size(), 2 * kTokens);
  EXPECT_EQ(BytesString(prefix->planes[2][1]), PlaneBytes(0, 2, 1) + PlaneBytes(1, 2, 1));
  EXPECT_EQ(delays_.size(), 1u);
}

TEST_F(ClientTest, RefusesPartsThatDoNotFit) {
  const auto error = [&](const std::function<void(std::vector<v1::GetBlocksResponse>&)>& change) {
    std::vector<v1::GetBlocksResponse> stream = GoodStream();
    change(stream);
    stub_->gets.push_back({stream, absl::OkStatus()});
    const auto prefix = MakeClient().GetPrefix(Request());
    EXPECT_EQ(prefix.status().code(), absl::StatusCode::kDataLoss);
    return std::string(prefix.status().message());
  };
  using Stream = std::vector<v1::GetBlocksResponse>;
  const auto part = [](Stream& s) { return s[2].mutable_part(); };
  EXPECT_THAT(error([&](Stream& s) { part(s)->set_index(2); }), HasSubstr("not open"));
  EXPECT_THAT(error([&](Stream& s) { part(s)->set_layer(1); }), HasSubstr("out of turn"));
  EXPECT_THAT(error([&](Stream& s) { part(s)->set_layer(UINT32_MAX); }), HasSubstr("out of turn"));
  EXPECT_THAT(error([&](Stream& s) { part(s)->set_plane(2); }), HasSubstr("out of turn"));
  EXPECT_THAT(error([&](Stream& s) { part(s)->set_offset(1); }), HasSubstr("do not fit"));
  EXPECT_THAT(error([&](Stream& s) { part(s)->set_offset(UINT64_MAX); }), HasSubstr("do not fit"));
  EXPECT_THAT(error([&](Stream& s) { part(s)->mutable_data()->append(4096, 'x'); }),
              HasSubstr("do not fit"));
  EXPECT_THAT(error([&](Stream& s) { part(s)->clear_data(); }), HasSubstr("do not fit"));
  EXPECT_THAT(error([&](Stream& s) { part(s)->mutable_data()->at(3) ^= 1; }),
              HasSubstr("wrong checksum"));
  EXPECT_THAT(error([&](Stream& s) { s.pop_back(); }), HasSubstr("no more after layer 2"));
  EXPECT_THAT(error([&](Stream& s) { s.push_back(s.back()); }), HasSubstr("out of turn"));
  EXPECT_THAT(error([&](Stream& s) { s.resize(1); }), HasSubstr("1 blocks of 2"));
  EXPECT_THAT(error([&](Stream& s) { s.insert(s.begin(), s[1]); }), HasSubstr("out of turn"));
  EXPECT_THAT(error([&](Stream& s) { s[1].mutable_open()->mutable_block()->set_tokens(257); }),
              HasSubstr("257 tokens"));
  EXPECT_THAT(error([&](Stream& s) { s[1].mutable_open()->add_token_ids(1); }),
              HasSubstr("token ids"));
  EXPECT_THAT(
      error([&](Stream& s) { *s[1].mutable_open()->mutable_block() = s[0].open().block(); }),
      HasSubstr("another block"));
}

TEST_F(ClientTest, WrongGetsNeverReachTheServer) {
  const auto code = [&](const GetRequest& request) {
    return MakeClient().GetPrefix(request).status().code();
  };
  GetRequest request = Request();
  request.session = "both";
  EXPECT_EQ(code(request), absl::StatusCode::kInvalidArgument);
  request.session.clear();
  request.content_hashes.clear();
  EXPECT_EQ(code(request), absl::StatusCode::kInvalidArgument);
  request = Request();
  request.first_layer = 3;
  EXPECT_EQ(code(request), absl::StatusCode::kInvalidArgument);
  request.first_layer = 2;
  request.layer_count = 2;
  EXPECT_EQ(code(request), absl::StatusCode::kInvalidArgument);
  request.layer_count = UINT32_MAX;
  EXPECT_EQ(code(request), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(stub_->get_requests.empty());
}

TEST(ScatterPlaneTest, AnySplitIntoAnyStrides) {
  PlaneSpec plane{"k", PlaneRole::kOpaque, 3, 8, DType::kF16};
  constexpr uint32_t kRows = 4;
  std::string data(plane.token_bytes() * kRows, '\0');
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i);
  for (const auto& [token_stride, head_stride] :
       {std::pair<size_t, size_t>{48, 16}, {64, 16}, {16, 64}, {100, 20}}) {
    for (size_t cut : {1, 7, 16, 48, 50}) {
      ByteVector out(512);
      const MutablePlaneView view{out.data(), token_stride, head_stride};
      for (size_t at = 0; at < data.size(); at += cut) {
        ScatterPlane(plane, at, AsBytes(std::string_view(data).substr(at, cut)), view);
      }
      for (uint32_t t = 0; t < kRows; ++t) {
        for (uint32_t h = 0; h < 3; ++h) {
          EXPECT_EQ(AsText({out.data() + t * token_stride + h * head_stride, 16}),
                    std::string_view(data).substr(t * 48 + h * 16, 16));
        }
      }
    }
  }
}

TEST(MockConnectionTest, StandsInForAServer) {
  const auto connection = std::make_shared<MockConnection>();
  EXPECT_CALL(*connection, Pin).WillOnce(Return(SelectionResult{3, 1}));
  Client client(connection);
  const auto result = client.Pin({"ns", {}, "chat"});
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->found, 3u);
}

}  // namespace
}  // namespace latticekv
