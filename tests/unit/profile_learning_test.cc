// The daemon learns channel statistics from what is stored: what is served before and after, over
// restarts, while versions change, and when old ones go.
#include <algorithm>
#include <thread>

#include "core/codec/channel_statistics.h"
#include "core/codec/codec.h"
#include "core/codec/cpu/float_cast.h"
#include "server/block_metadata.h"
#include "server/layout_proto.h"
#include "tests/support/sample_chunk.h"
#include "tests/support/service_fixture.h"

namespace latticekv::testing {
namespace {

constexpr uint32_t kLearn = 8 * kTestChunk;

class ProfileLearningTest : public ServiceFixture {
 protected:
  void SetUp() override {
    ServiceFixture::SetUp();
    // Without a rotation the means of the sample's keys are means indeed.
    layout_ = MakeUniformLayout("test-model", 3, 2, 64, DType::kF16, {RopeStyle::kNone, 0, 0});
    StartLearning();
  }

  void StartLearning(const std::function<void(ServerConfig&)>& adjust = {}) {
    StartServer([&](ServerConfig& config) {
      config.learn_profiles = true;
      config.learn_tokens = kLearn;
      config.max_relearn_tokens = 4 * kLearn;
      if (adjust) adjust(config);
    });
  }
  void StartLearningOnDisk() {
    StartLearning([&](ServerConfig& config) {
      config.disk_dir = directory_ + "/disk";
      config.disk_bytes = 64 << 20;
    });
  }

  // Blocks of a sequence whose channels have the means of `text`, and noise of their own.
  std::vector<TestBlock> Text(uint32_t first_id, uint32_t tokens, uint64_t text,
                              uint64_t part = 0) {
    auto blocks = MakeBlocks(Ids(first_id, tokens));
    for (TestBlock& block : blocks) {
      block.payload.clear();
      Random noise(text * 1'000'003 + part * 1009 + block.header.start_position());
      Random means(text);
      for (const LayerSpec& layer : layout_.layers) {
        for (const PlaneSpec& plane : layer.planes) {
          std::vector<float> mean(size_t{plane.heads} * plane.head_dim), row(mean.size());
          for (float& m : mean) m = 2 * means.Bell();
          for (int t = 0; t < block.header.token_ids_size(); ++t) {
            for (size_t c = 0; c < row.size(); ++c) row[c] = mean[c] + 0.5f * noise.Bell();
            std::string bytes(2 * row.size(), '\0');
            StoreRow(DType::kF16, row.data(), static_cast<uint32_t>(row.size()),
                     reinterpret_cast<std::byte*>(bytes.data()));
            block.payload += bytes;
          }
        }
      }
    }
    return blocks;
  }

  // Puts and waits until what there is to learn is learnt.
  std::vector<v1::BlockAck> Store(const std::vector<TestBlock>& blocks,
                                  v1::BlockState state = v1::BLOCK_STATE_MEMORY) {
    v1::PutOpen open = Open(v1::PRESET_BALANCED);
    open.set_wait_for(state);
    const auto acks = Put(open, blocks);
    for (const v1::BlockAck& ack : acks) EXPECT_FALSE(ack.has_error()) << ack.error().message();
    engine().learning().Wait();
    return acks;
  }

  v1::LayoutState State() { return client_->Stats().response.layout_states(0); }
  // The version in use; 0: none.
  uint32_t Version() {
    const v1::LayoutState state = State();
    for (const v1::ProfileState& p : state.profiles()) {
      if (p.in_use()) return p.version();
    }
    return 0;
  }
  std::string ProfileOf(const TestBlock& block) {
    v1::GetBlockRequest request;
    request.set_key(ToHex(AsBytes(block.hash())));
    return client_->GetBlock(request).response.profile_hash();
  }
  std::shared_ptr<const ModelProfile> Fetch(const std::string& hex) {
    v1::GetProfileRequest request;
    request.set_fingerprint(fingerprint_);
    request.set_profile_hash(std::string(AsText(*FromHex(hex))));
    const auto called = client_->GetProfile(request);
    EXPECT_TRUE(called.status.ok()) << called.status.message;
    auto profile = ParseProfile(AsBytes(called.response.profile()), layout_);
    EXPECT_TRUE(profile.ok()) << profile.status();
    return std::make_shared<const ModelProfile>(*std::move(profile));
  }

  // Every block is what a local encode with the profile that it names, and a decode, give.
  void ExpectServedRight(const std::vector<TestBlock>& blocks) {
    std::vector<std::string> hashes;
    for (const TestBlock& block : blocks) hashes.push_back(block.hash());
    const GetResult got = GetHashes(hashes);
    ASSERT_TRUE(got.status.ok()) << got.status.message;
    ASSERT_EQ(got.payloads.size(), blocks.size());
    for (size_t i = 0; i < blocks.size(); ++i) {
      const std::string hash = ProfileOf(blocks[i]);
      const auto profile = hash.empty() ? nullptr : Fetch(hash);
      EncodeOptions options;
      options.preset = PresetId::kBalanced;
      options.profile = profile.get();
      options.start_position = blocks[i].header.start_position();
      const auto tokens = static_cast<uint32_t>(blocks[i].header.token_ids_size());
      const auto frame = EncodeFrame(
          layout_, tokens, RawChunkViews(layout_, tokens, AsBytes(blocks[i].payload)), options);
      ASSERT_TRUE(frame.ok()) << frame.status();
      const auto decoder = FrameDecoder::Open(*frame, layout_, profile.get());
      ASSERT_TRUE(decoder.ok()) << decoder.status();
      std::string raw(blocks[i].payload.size(), '\xA5');
      ASSERT_TRUE(
          DecodeFrame(*decoder, layout_, {reinterpret_cast<std::byte*>(raw.data()), raw.size()})
              .ok());
      EXPECT_TRUE(got.payloads[i] == raw) << "block " << i;
    }
  }
};

uint64_t StoredBytes(const std::vector<v1::BlockAck>& acks) {
  uint64_t bytes = 0;
  for (const v1::BlockAck& ack : acks) bytes += ack.stored_bytes();
  return bytes;
}

TEST_F(ProfileLearningTest, TheFirstTokensMakeTheFirstVersion) {
  const auto before = Text(1, kLearn, 7, 0);
  EXPECT_TRUE(State().learning());
  const auto first = Store(before);
  EXPECT_EQ(Version(), 1u);
  EXPECT_EQ(State().learnt_tokens(), kLearn);
  const auto after = Text(1000, kLearn, 7, 1);
  const auto second = Store(after);
  for (const TestBlock& block : before) EXPECT_EQ(ProfileOf(block), "");
  for (const TestBlock& block : after) EXPECT_EQ(ProfileOf(block), State().profiles(0).hash());
  EXPECT_LT(StoredBytes(second), 0.95 * static_cast<double>(StoredBytes(first)));
  ExpectServedRight(before);
  ExpectServedRight(after);
  // The same tokens make the same profile, whoever sums, in whatever order.
  ChannelStatistics statistics(layout_);
  for (auto block = before.rbegin(); block != before.rend(); ++block) {
    statistics.Add(kTestChunk, block->header.start_position(),
                   RawChunkViews(layout_, kTestChunk, AsBytes(block->payload)));
  }
  EXPECT_EQ(ToHex(statistics.MakeProfile(nullptr).decoding_hash), State().profiles(0).hash());
}

TEST_F(ProfileLearningTest, ANewVersionOnlyWhereItPays) {
  Store(Text(1, kLearn, 7, 0));
  ASSERT_EQ(Version(), 1u);
  for (uint32_t n = 1; n <= 4; ++n) Store(Text(1000 * n, kLearn, 7, n));
  EXPECT_EQ(Version(), 1u);  // the same text: nothing to gain
  EXPECT_GT(State().learnt_tokens(), kLearn);
  // Another text fills the statistics until a version of both codes it better.
  for (uint32_t n = 0; n < 40 && Version() == 1; ++n) Store(Text(50000 + 1000 * n, kLearn, 8, n));
  EXPECT_EQ(Version(), 2u);
  EXPECT_EQ(State().profiles_size(), 2);
}

TEST_F(ProfileLearningTest, OldVersionsLiveWhileBlocksReferToThem) {
  StartLearningOnDisk();
  Store(Text(1, kLearn, 7, 0), v1::BLOCK_STATE_DURABLE);
  const auto of_first = Text(1000, kLearn, 7, 1);
  Store(of_first, v1::BLOCK_STATE_DURABLE);
  std::vector<TestBlock> of_second;
  for (uint32_t n = 0; n < 20 && Version() == 1; ++n) {
    of_second = Text(50000 + 1000 * n, kLearn, 8, n);
    Store(of_second, v1::BLOCK_STATE_DURABLE);
  }
  ASSERT_EQ(Version(), 2u);
  const auto last = Text(90000, kLearn, 8, 30);
  Store(last, v1::BLOCK_STATE_DURABLE);
  ExpectServedRight(of_first);
  ExpectServedRight(last);
  const v1::LayoutState before = State();

  StartLearningOnDisk();
  EXPECT_EQ(Version(), 2u);
  ASSERT_EQ(State().profiles_size(), 2);
  EXPECT_EQ(State().profiles(0).hash(), before.profiles(0).hash());
  ExpectServedRight(of_first);
  ExpectServedRight(last);
  EXPECT_EQ(ProfileOf(Text(95000, kTestChunk, 8, 99)[0]), "");  // not stored: a check of the check
  const auto next = Text(95000, kLearn, 8, 40);
  Store(next, v1::BLOCK_STATE_DURABLE);
  EXPECT_EQ(ProfileOf(next[0]), ProfileOf(last[0]));  // in use again at once

  // The first version goes with the last of its blocks.
  WaitUntil([&] {  // the catalog has counted them
    uint64_t blocks = 0;
    const v1::LayoutState state = State();
    for (const v1::ProfileState& p : state.profiles()) blocks += p.blocks();
    return blocks >= of_first.size() + last.size() + next.size();
  });
  const std::string first_hash = ProfileOf(of_first[0]), second_hash = ProfileOf(last[0]);
  ASSERT_NE(first_hash, second_hash);
  v1::DeleteRequest request;
  v1::ListBlocksRequest list;
  list.set_page_size(1000);
  const auto listed = client_->ListBlocks(list).response;
  for (const v1::BlockSummary& block : listed.blocks()) {
    v1::GetBlockRequest get;
    get.set_key(block.key());
    if (client_->GetBlock(get).response.profile_hash() != first_hash) continue;
    request.mutable_blocks()->add_content_hashes(std::string(AsText(*FromHex(block.key()))));
  }
  ASSERT_GE(request.blocks().content_hashes_size(), static_cast<int>(of_first.size()));
  ASSERT_TRUE(client_->Delete(request).status.ok());
  const auto first_is_kept = [&] {
    const v1::LayoutState state = State();
    return std::any_of(state.profiles().begin(), state.profiles().end(),
                       [&](const v1::ProfileState& p) { return p.hash() == first_hash; });
  };
  WaitUntil([&] { return !first_is_kept(); });
  ExpectServedRight(last);
  StartLearningOnDisk();
  EXPECT_FALSE(first_is_kept());
  EXPECT_GE(State().profiles_size(), 1);
  ExpectServedRight(last);
}

TEST_F(ProfileLearningTest, AStreamTakesUpAVersionThatComesMeanwhile) {
  const auto blocks = Text(1, 40 * kTestChunk, 7, 0);
  const auto call = client_->PutBlocks();
  call->WriteOpen(Open(v1::PRESET_BALANCED));
  v1::PutBlocksResponse response;
  for (const TestBlock& block : blocks) {
    call->WriteHeader(block.header);
    ASSERT_TRUE(call->Read(&response));
    call->WritePart(block.header.index(), 0, block.payload);
    ASSERT_TRUE(call->Read(&response));
    ASSERT_FALSE(response.ack().has_error()) << response.ack().error().message();
    if (block.header.index() == 20) engine().learning().Wait();
  }
  call->WritesDone();
  EXPECT_TRUE(call->Finish().ok());
  EXPECT_EQ(ProfileOf(blocks.front()), "");
  EXPECT_NE(ProfileOf(blocks.back()), "");
  ExpectServedRight(blocks);
}

TEST_F(ProfileLearningTest, ManyWritersWhileVersionsChange) {
  constexpr uint32_t kWriters = 4, kRounds = 12;
  std::vector<std::vector<TestBlock>> texts(kWriters);
  std::vector<std::thread> writers;
  for (uint32_t w = 0; w < kWriters; ++w) {
    for (uint32_t r = 0; r < kRounds; ++r) {
      auto blocks = Text(1 + 100000 * w + 1000 * r, kLearn, 20 + (w + r) % 3, r);
      texts[w].insert(texts[w].end(), blocks.begin(), blocks.end());
    }
  }
  for (uint32_t w = 0; w < kWriters; ++w) {
    writers.emplace_back([&, w] {
      const auto client = ServiceClient::Connect(server_->addresses()[0]);
      for (size_t at = 0; at < texts[w].size(); at += 4) {
        const auto call = client->PutBlocks();
        call->WriteOpen(Open(v1::PRESET_BALANCED));
        v1::PutBlocksResponse response;
        for (size_t i = at; i < at + 4; ++i) {
          call->WriteHeader(texts[w][i].header);
          ASSERT_TRUE(call->Read(&response));
          call->WritePart(texts[w][i].header.index(), 0, texts[w][i].payload);
          ASSERT_TRUE(call->Read(&response));
          ASSERT_FALSE(response.ack().has_error()) << response.ack().error().message();
        }
        call->WritesDone();
        EXPECT_TRUE(call->Finish().ok());
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
  engine().learning().Wait();
  EXPECT_GE(Version(), 1u);
  for (const auto& blocks : texts) ExpectServedRight(blocks);
}

TEST_F(ProfileLearningTest, RegisteredProfilesComeFirst) {
  const ModelProfile energy = MakeSampleProfile(layout_, 3, false);
  v1::RegisterLayoutRequest request;
  request.set_chunk_tokens(kTestChunk);
  LayoutToProto(layout_, request.mutable_layout());
  request.set_profile(std::string(AsText(SerializeProfile(energy))));
  ASSERT_TRUE(client_->RegisterLayout(request).status.ok());
  // Query energy alone: statistics are learnt and its steps stay.
  Store(Text(1, kLearn, 7, 0));
  EXPECT_EQ(Version(), 1u);
  const auto after = Text(1000, kLearn, 7, 1);
  const auto acks = Store(after);
  EXPECT_TRUE(acks[0].quality().profiled());
  ExpectServedRight(after);
  const auto learnt = Fetch(ProfileOf(after[0]));
  for (size_t l = 0; l < energy.layers.size(); ++l) {
    EXPECT_EQ(learnt->layers[l][0].heads[0].step_16, energy.layers[l][0].heads[0].step_16);
  }
  // Registered again, as every client does, it changes nothing.
  EXPECT_EQ(client_->RegisterLayout(request).response.profile_hash(),
            DigestToBytes(learnt->decoding_hash));
  // One with statistics takes over.
  const ModelProfile whole = MakeSampleProfile(layout_, 4, true);
  request.set_profile(std::string(AsText(SerializeProfile(whole))));
  ASSERT_TRUE(client_->RegisterLayout(request).status.ok());
  EXPECT_FALSE(State().learning());
  const uint64_t learnt_tokens = State().learnt_tokens();
  for (uint32_t n = 0; n < 8; ++n) Store(Text(5000 + 1000 * n, kLearn, 8, n));
  EXPECT_EQ(Version(), 0u);
  EXPECT_EQ(State().learnt_tokens(), learnt_tokens);
  ExpectServedRight(after);
}

TEST_F(ProfileLearningTest, TurnedOffNothingIsLearnt) {
  StartLearning([](ServerConfig& config) { config.learn_profiles = false; });
  Store(Text(1, 4 * kLearn, 7, 0));
  EXPECT_EQ(State().profiles_size(), 0);
  EXPECT_FALSE(State().learning());
  EXPECT_EQ(State().learnt_tokens(), 0u);
}

TEST_F(ProfileLearningTest, FramesOfWorkersTeachNothingAndNameAMissingProfile) {
  const ModelProfile foreign = MakeSampleProfile(layout_, 5, true);
  TestBlock block = Text(1, kTestChunk, 7, 0)[0];
  EncodeOptions options;
  options.preset = PresetId::kBalanced;
  options.profile = &foreign;
  options.stats = StatsMode::kProfile;
  const auto frame = EncodeFrame(
      layout_, kTestChunk, RawChunkViews(layout_, kTestChunk, AsBytes(block.payload)), options);
  ASSERT_TRUE(frame.ok()) << frame.status();
  block.payload = std::string(AsText(*frame));
  block.header.set_payload_bytes(block.payload.size());
  v1::PutOpen open = Open(v1::PRESET_BALANCED);
  open.set_encoding(v1::ENCODING_FRAME);
  const v1::BlockAck ack = PutOne(open, block);
  EXPECT_EQ(ack.error().reason(), v1::REASON_PROFILE_MISSING);
  EXPECT_NE(ack.error().message().find(ToHex(foreign.decoding_hash)), std::string::npos);
  engine().learning().Wait();
  EXPECT_EQ(State().learnt_tokens(), 0u);
  v1::GetProfileRequest request;
  request.set_fingerprint(fingerprint_);
  request.set_profile_hash(DigestToBytes(foreign.decoding_hash));
  const CallStatus missing = client_->GetProfile(request).status;
  EXPECT_EQ(missing.detail.reason(), v1::REASON_PROFILE_MISSING);
  EXPECT_NE(missing.message.find(ToHex(foreign.decoding_hash)), std::string::npos);
  request.clear_profile_hash();
  EXPECT_TRUE(client_->GetProfile(request).response.profile().empty());  // none is in use
  request.set_fingerprint(std::string(32, 'f'));
  EXPECT_EQ(client_->GetProfile(request).status.detail.reason(), v1::REASON_UNKNOWN_LAYOUT);
}

}  // namespace
}  // namespace latticekv::testing
