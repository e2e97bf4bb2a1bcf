// A running server with a disk tier: durable puts, restarts, reads from disk, health.
#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>
#include <mutex>

#include "core/base/crc32c.h"
#include "core/store/segment_format.h"
#include "server/block_metadata.h"
#include "tests/support/service_fixture.h"

namespace latticekv::testing {
namespace {

// What the daemon logs while this lives. No server may run, and so log, when it begins or ends.
class LogCapture {
 public:
  LogCapture() : before_(spdlog::default_logger()) {
    spdlog::set_default_logger(std::make_shared<spdlog::logger>("test", sink_));
  }
  ~LogCapture() { spdlog::set_default_logger(before_); }
  std::string text() const { return sink_->text(); }

 private:
  class Sink : public spdlog::sinks::base_sink<std::mutex> {
   public:
    std::string text() {
      const std::lock_guard lock(mutex_);
      return text_;
    }

   private:
    void sink_it_(const spdlog::details::log_msg& message) override {
      text_.append(message.payload.data(), message.payload.size()).push_back('\n');
    }
    void flush_() override {}
    std::string text_;
  };

  const std::shared_ptr<Sink> sink_ = std::make_shared<Sink>();
  const std::shared_ptr<spdlog::logger> before_;
};

class ServerDiskTest : public ServiceFixture {
 protected:
  void SetUp() override {
    ServiceFixture::SetUp();
    Restart();
  }
  void Restart(size_t memory_bytes = 4 << 20) {
    StartServer([&](ServerConfig& config) {
      config.memory_bytes = memory_bytes;
      config.disk_dir = directory_ + "/disk";
      config.disk_bytes = 64 << 20;
    });
  }
  v1::PutOpen Durable(const std::string& session = "") {
    v1::PutOpen open = Open(v1::PRESET_EXACT, session);
    open.set_wait_for(v1::BLOCK_STATE_DURABLE);
    return open;
  }
  v1::StatsResponse Stats() { return client_->Stats().response; }
  uint64_t disk_read_bytes() { return engine().store().Stats().disk_read_bytes; }
  void EndServer() {
    client_.reset();
    server_.reset();
  }
  // Ends the server and changes a segment file.
  void Damage(uint32_t id, const std::function<void(ByteVector&)>& change) {
    EndServer();
    const auto file = FileSystem::Posix()->Open(JoinPath(directory_ + "/disk", SegmentFileName(id)),
                                                OpenMode::kReadWrite);
    ASSERT_TRUE(file.ok()) << file.status();
    ByteVector bytes(*(*file)->Size());
    ASSERT_TRUE((*file)->ReadAt(0, bytes).ok());
    change(bytes);
    ASSERT_TRUE((*file)->WriteAt(0, bytes).ok());
  }
  void ExpectServed(const std::vector<TestBlock>& blocks) {
    std::vector<std::string> hashes;
    for (const TestBlock& block : blocks) hashes.push_back(block.hash());
    const GetResult got = GetHashes(hashes);
    ASSERT_TRUE(got.status.ok()) << got.status.message;
    for (size_t i = 0; i < blocks.size(); ++i) {
      EXPECT_EQ(got.payloads[i], blocks[i].payload)
          << "block " << i << ": " << got.opens[i].miss().message();
    }
  }
};

TEST_F(ServerDiskTest, DurableBlocksAndTheirSessionOutliveTheServer) {
  const auto blocks = MakeBlocks(Ids(1, 5 * kTestChunk + 3));
  for (const v1::BlockAck& ack : Put(Durable("chat"), blocks)) {
    EXPECT_FALSE(ack.has_error()) << ack.error().message();
    EXPECT_EQ(ack.state(), v1::BLOCK_STATE_DURABLE);
  }
  // Put again: there already, and durable.
  for (const v1::BlockAck& ack : Put(Durable("copy"), blocks)) {
    EXPECT_TRUE(ack.have_it());
    EXPECT_EQ(ack.state(), v1::BLOCK_STATE_DURABLE);
  }
  Restart();
  EXPECT_EQ(Stats().recovered_blocks(), blocks.size());
  EXPECT_EQ(Stats().sessions(), 2u);
  ExpectServed(blocks);
  v1::GetBlocksRequest request;
  request.set_session("chat");
  const GetResult got = Get(request);
  ASSERT_TRUE(got.status.ok()) << got.status.message;
  ASSERT_EQ(got.payloads.size(), blocks.size());
  for (size_t i = 0; i < blocks.size(); ++i) EXPECT_EQ(got.payloads[i], blocks[i].payload);
  // Token ids find them, partial tails too, once the catalog is filled again.
  std::vector<uint32_t> ids = Ids(1, 5 * kTestChunk + 3);
  EXPECT_EQ(LookupIds(ids).usable_tokens(), ids.size());
  ids.push_back(4711);
  WaitUntil([&] { return LookupIds(ids).usable_tokens() == ids.size() - 1; });
}

TEST_F(ServerDiskTest, BlocksBeyondMemoryAreServedFromDiskLayerByLayer) {
  Restart(1 << 20);
  // Three times the memory.
  const auto blocks = MakeBlocks(Ids(1, 80 * kTestChunk));
  for (const TestBlock& block : blocks) {
    ASSERT_FALSE(PutOne(Durable("long"), block).has_error());
  }
  EXPECT_GT(Stats().evicted_to_disk(), 0u);
  EXPECT_EQ(Stats().blocks(), blocks.size());
  ExpectServed(blocks);
  v1::GetBlocksRequest request;
  request.set_session("long");
  request.set_first_layer(1);
  request.set_layer_count(1);
  const GetResult got = Get(request);
  ASSERT_TRUE(got.status.ok()) << got.status.message;
  const size_t layer_bytes = blocks[0].payload.size() / 3;
  for (size_t i = 0; i < blocks.size(); ++i) {
    EXPECT_EQ(got.payloads[i].substr(layer_bytes, layer_bytes),
              blocks[i].payload.substr(layer_bytes, layer_bytes));
  }
  // As frames.
  v1::GetBlocksRequest frames;
  frames.set_session("long");
  frames.set_encoding(v1::ENCODING_FRAME);
  const GetResult whole = Get(frames);
  ASSERT_TRUE(whole.status.ok()) << whole.status.message;
  for (size_t i = 0; i < blocks.size(); ++i) {
    EXPECT_TRUE(ReadFrameInfo(AsBytes(whole.payloads[i])).ok()) << i;
  }
  const auto listed = client_->ListBlocks({}).response;
  size_t on_disk = 0;
  for (const auto& block : listed.blocks()) on_disk += block.tier() == v1::TIER_DISK;
  EXPECT_GT(on_disk, 0u);
  EXPECT_LE(Stats().memory_peak_bytes(), 1u << 20);
}

TEST_F(ServerDiskTest, OneLayerIsReadWithoutTheOthers) {
  layout_ = MakeUniformLayout("deep", 40, 2, 64, DType::kF16, {RopeStyle::kNeox, 64, 10000.0});
  Restart();
  const auto blocks = MakeBlocks(Ids(1, 8 * kTestChunk));
  Put(Durable("deep"), blocks);
  Restart();
  const size_t layer_bytes = blocks[0].payload.size() / 40;
  v1::GetBlocksRequest request;
  request.set_session("deep");
  request.set_first_layer(17);
  request.set_layer_count(1);
  const uint64_t before = disk_read_bytes();
  const GetResult got = Get(request);
  ASSERT_TRUE(got.status.ok()) << got.status.message;
  ASSERT_EQ(got.payloads.size(), blocks.size());
  for (size_t i = 0; i < blocks.size(); ++i) {
    EXPECT_EQ(got.payloads[i].substr(17 * layer_bytes, layer_bytes),
              blocks[i].payload.substr(17 * layer_bytes, layer_bytes));
  }
  // The layer, and of each block at most 8 KiB of description; the catalog after the start reads
  // every description, too.
  const uint64_t read = disk_read_bytes() - before;
  printf("%llu bytes read for %zu layers of %zu bytes, blocks of %zu\n",
         static_cast<unsigned long long>(read), blocks.size(), layer_bytes,
         blocks[0].payload.size());
  EXPECT_GE(read, blocks.size() * layer_bytes / 2);
  EXPECT_LE(read, blocks.size() * (2 * 8192 + 2 * layer_bytes));
  EXPECT_LT(read, blocks.size() * blocks[0].payload.size() / 4);
}

TEST_F(ServerDiskTest, ListingSessionsReadsNoBlocks) {
  Put(Durable("listed"), MakeBlocks(Ids(1, 6 * kTestChunk)));
  const auto listed = [&] { return client_->ListSessions({}).response.sessions(0); };
  const uint64_t stored = listed().stored_bytes();
  EXPECT_GT(stored, 0u);
  Restart();
  EXPECT_EQ(listed().stored_bytes(), stored);
  WaitUntil([&] {
    const uint64_t before = disk_read_bytes();
    EXPECT_EQ(listed().stored_bytes(), stored);
    return disk_read_bytes() == before;
  });
  EXPECT_EQ(listed().blocks(), 6u);
  EXPECT_EQ(listed().missing_blocks(), 0u);
}

TEST_F(ServerDiskTest, DamageIsFoundByVerifyAndNeverServed) {
  const auto blocks = MakeBlocks(Ids(1, 4 * kTestChunk));
  Put(Durable("s"), blocks);
  // In the third record's frame.
  Damage(1, [&](ByteVector& bytes) {
    bytes[kSegmentHeaderBytes + blocks[0].payload.size() * 5 / 2] ^= std::byte{4};
  });
  Restart();
  EXPECT_EQ(Stats().recovered_blocks(), 4u);
  const auto verified = client_->Verify();
  ASSERT_TRUE(verified.status.ok()) << verified.status.message;
  EXPECT_EQ(verified.response.disk_records_corrupt(), 1u);
  EXPECT_EQ(Stats().damaged_records(), 1u);
  std::vector<std::string> hashes;
  for (const TestBlock& block : blocks) hashes.push_back(block.hash());
  const GetResult got = GetHashes(hashes);
  ASSERT_TRUE(got.status.ok());
  size_t missing = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (got.opens[i].has_miss()) {
      EXPECT_EQ(got.opens[i].miss().reason(), v1::REASON_CORRUPT);
      ++missing;
    } else {
      EXPECT_EQ(got.payloads[i], blocks[i].payload);
    }
  }
  EXPECT_EQ(missing, 1u);
}

TEST_F(ServerDiskTest, ADamagedBlockFailsAloneAmongUnorderedLayers) {
  const auto blocks = MakeBlocks(Ids(1, 4 * kTestChunk));
  Put(Durable("s"), blocks);
  // In the third block's last layer: low bytes of its last values, which are stored as they are.
  ByteVector low;
  for (size_t i = blocks[2].payload.size() - 128; i < blocks[2].payload.size(); i += 2) {
    low.push_back(static_cast<std::byte>(blocks[2].payload[i]));
  }
  Damage(1, [&](ByteVector& bytes) {
    const auto found = std::search(bytes.begin(), bytes.end(), low.begin(), low.end());
    ASSERT_NE(found, bytes.end());
    *found ^= std::byte{4};
  });
  Restart();
  v1::GetBlocksRequest request;
  request.set_session("s");
  request.set_unordered_layers(true);
  const GetResult got = Get(request);
  ASSERT_TRUE(got.status.ok()) << got.status.message;
  ASSERT_EQ(got.failed.size(), 1u);
  EXPECT_EQ(got.failed[0].index(), 2u);
  EXPECT_EQ(got.failed[0].miss().reason(), v1::REASON_CORRUPT);
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (i != 2) {
      EXPECT_EQ(got.payloads[i], blocks[i].payload) << i;
    }
  }
}

TEST_F(ServerDiskTest, WhatRecoveryLostIsCountedAndLogged) {
  const auto blocks = MakeBlocks(Ids(1, 4 * kTestChunk));
  Put(Durable("s"), blocks);
  // Without the segment's index every record is looked at, and one has another byte in its frame.
  Damage(1, [&](ByteVector& bytes) {
    const auto trailer = DecodeTrailer(ByteSpan(bytes).last(kTrailerBytes), 1, bytes.size());
    ASSERT_TRUE(trailer.ok()) << trailer.status();
    std::fill(bytes.begin() + static_cast<ptrdiff_t>(trailer->footer_offset), bytes.end(),
              std::byte{0});
    bytes[kSegmentHeaderBytes + blocks[0].payload.size() * 5 / 2] ^= std::byte{4};
  });
  {
    const LogCapture log;
    Restart();
    EXPECT_NE(log.text().find("lost at recovery: 1 damaged records of blocks; 0 damaged bytes and "
                              "0 records of the journal"),
              std::string::npos)
        << log.text();
    EXPECT_EQ(Stats().recovered_blocks(), 3u);
    EXPECT_EQ(Stats().damaged_records(), 1u);
    EndServer();
  }
  // Nothing more to tell.
  const LogCapture log;
  Restart();
  EXPECT_EQ(log.text().find("lost at recovery"), std::string::npos) << log.text();
  EXPECT_EQ(Stats().recovered_blocks(), 3u);
  EndServer();
}

TEST_F(ServerDiskTest, AnUnknownFormatIsRefusedWithASentence) {
  Put(Durable(), MakeBlocks(Ids(1, kTestChunk)));
  Damage(1, [](ByteVector& bytes) {
    StoreLe<uint32_t>(bytes.data() + 8, 9);
    StoreLe<uint32_t>(bytes.data() + 60, Crc32c(ByteSpan(bytes).first(60)));
  });
  ServerConfig config;
  config.listen = {"unix:" + directory_ + "/s"};
  config.disk_dir = directory_ + "/disk";
  config.disk_bytes = 64 << 20;
  const auto server = Server::Start(config);
  EXPECT_EQ(server.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(server.status().message().find("version 9"), std::string::npos) << server.status();
}

TEST_F(ServerDiskTest, WithBothCapsFullTheServerGoesOn) {
  StartServer([&](ServerConfig& config) {
    config.memory_bytes = 1 << 20;
    config.disk_dir = directory_ + "/small";
    config.disk_bytes = 2 << 20;
  });
  std::vector<TestBlock> last;
  for (uint32_t n = 0; n < 40; ++n) {
    last = MakeBlocks(Ids(1 + n * 1000, 4 * kTestChunk));
    for (const v1::BlockAck& ack : Put(Durable(), last)) {
      EXPECT_FALSE(ack.has_error()) << n << ": " << ack.error().message();
    }
    ExpectServed(last);
  }
  const auto stats = Stats();
  EXPECT_GT(stats.disk_evicted_blocks(), 0u);
  EXPECT_LE(stats.disk_peak_bytes(), 2u << 20);
  EXPECT_LE(stats.memory_peak_bytes(), 1u << 20);
}

TEST_F(ServerDiskTest, VerifyScrubsTheDiskAndFlushWritesBack) {
  const auto blocks = MakeBlocks(Ids(1, 6 * kTestChunk));
  Put(Open(v1::PRESET_HIGH, "s"), blocks);
  ASSERT_TRUE(client_->Flush().ok());
  EXPECT_EQ(Stats().disk_blocks(), 6u);
  const auto verified = client_->Verify();
  ASSERT_TRUE(verified.status.ok()) << verified.status.message;
  EXPECT_TRUE(verified.response.done());
  EXPECT_EQ(verified.response.blocks_checked(), 6u);
  EXPECT_GE(verified.response.disk_records_checked(), 6u);
  EXPECT_EQ(verified.response.disk_records_corrupt(), 0u);
  EXPECT_GT(verified.response.disk_bytes_checked(), 0u);
  Restart();
  EXPECT_EQ(Stats().recovered_blocks(), 6u);
}

TEST_F(ServerDiskTest, DrainWritesBackWhatNobodyAskedToBeDurable) {
  const auto blocks = MakeBlocks(Ids(1, 3 * kTestChunk));
  Put(Open(v1::PRESET_EXACT, "s"), blocks);
  Restart();
  ExpectServed(blocks);
}

TEST_F(ServerDiskTest, ADeletedDirectoryMeansMemoryOnlySaidAloud) {
  EXPECT_EQ(Stats().disk_state(), v1::DISK_STATE_OK);
  EXPECT_TRUE(client_->Health("latticekv.v1.DiskTier").response);
  // By another name first: what the start and the registration left to be written may be written
  // while the files are being removed, and would make new ones.
  std::filesystem::rename(directory_ + "/disk", directory_ + "/gone");
  std::filesystem::remove_all(directory_ + "/gone");
  const auto blocks = MakeBlocks(Ids(1, 2 * kTestChunk));
  const v1::BlockAck ack = PutOne(Durable(), blocks[0]);
  EXPECT_EQ(ack.error().reason(), v1::REASON_DISK) << ack.error().message();
  // Not durable, and served all the same.
  EXPECT_FALSE(PutOne(Open(), blocks[1]).has_error());
  ExpectServed(blocks);
  WaitUntil([&] { return !client_->Health("latticekv.v1.DiskTier").response; });
  EXPECT_EQ(Stats().disk_state(), v1::DISK_STATE_MEMORY_ONLY);
  EXPECT_FALSE(Stats().disk_reason().empty());
  EXPECT_TRUE(client_->Health("").response);
  // The directory comes back, and with it the disk.
  std::filesystem::create_directory(directory_ + "/disk");
  WaitUntil([&] { return client_->Health("latticekv.v1.DiskTier").response; });
  WaitUntil([&] { return !PutOne(Durable("again"), blocks[0]).has_error(); });
}

TEST_F(ServerDiskTest, WithoutADiskDurableIsRefusedWithAReason) {
  StartServer();
  const v1::BlockAck ack = PutOne(Durable(), MakeBlocks(Ids(1, kTestChunk))[0]);
  EXPECT_EQ(ack.error().reason(), v1::REASON_DISK);
  EXPECT_EQ(Stats().disk_state(), v1::DISK_STATE_NO_DISK);
}

TEST_F(ServerDiskTest, OneServerADirectory) {
  ServerConfig config;
  config.listen = {"unix:" + directory_ + "/second"};
  config.disk_dir = directory_ + "/disk";
  config.disk_bytes = 64 << 20;
  const absl::Status refused = Server::Start(config).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(refused.message().find("another process holds"), std::string::npos) << refused;
}

}  // namespace
}  // namespace latticekv::testing
