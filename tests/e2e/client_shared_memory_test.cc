// Shared memory between the client library and a real daemon: which path bytes take, hostile and
// broken clients.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "client/src/stub.h"
#include "core/base/crc32c.h"
#include "latticekv/error_detail.h"
#include "tests/e2e/client_service_fixture.h"

namespace latticekv {
namespace {

using ClientSharedMemoryTest = ClientServiceTest;

TEST_F(ClientSharedMemoryTest, PutsTheSameBytesWithAndWithoutSharedMemory) {
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

// What GetBlocks answers to a request with this window: the parts in and out of it.
struct WindowReply {
  size_t in_window = 0, inline_parts = 0;
  std::string bytes;  // of the parts in the window
  absl::Status status;
};

TEST_F(ClientSharedMemoryTest, PartsOfGetsComeThroughSharedMemory) {
  Client client = ConnectWith({});
  const RegisteredLayout layout = RegisterWith(client);
  auto put = client.PutPrefix(Request(layout));
  ASSERT_TRUE(put.ok() && put->status().ok()) << put.status();
  auto stub = MakeGrpcStub(Address(), {});
  ASSERT_TRUE(stub.ok());
  RegionClient regions(**stub, 1 << 20);
  const auto region = Lease(regions);
  ASSERT_NE(region, nullptr);
  const auto get = [&](uint64_t id, uint64_t offset, uint64_t bytes, uint64_t done) {
    v1::GetBlocksRequest request;
    request.set_fingerprint(BytesString(layout.fingerprint));
    for (const BlockResult& block : put->blocks) {
      request.add_content_hashes(BytesString(block.content_hash));
    }
    request.mutable_window()->set_region_id(id);
    request.mutable_window()->set_offset(offset);
    request.mutable_window()->set_bytes(bytes);
    if (offset % 8 == 0 && offset < region->bytes()) StoreLe(region->at(offset), done);
    WindowReply out;
    auto stream = (*stub)->GetBlocks(request);
    v1::GetBlocksResponse message;
    while (stream->Read(message)) {
      if (message.has_part()) ++out.inline_parts;
      for (const v1::GetPart& part : message.window_parts().parts()) {
        ++out.in_window;
        EXPECT_TRUE(part.data().empty());
        const std::byte* at = region->at(offset) + 64 + part.window_position();
        out.bytes.append(AsText(ByteSpan(at, part.window_bytes())));
      }
    }
    out.status = stream->Finish();
    return out;
  };
  const size_t parts = put->blocks.size() * 3 * 2;
  const WindowReply whole = get(region->id(), 0, region->bytes(), 0);
  EXPECT_TRUE(whole.status.ok()) << whole.status;
  EXPECT_EQ(whole.in_window, parts);
  std::string expected;
  for (size_t l = 0; l < layout_.layers.size(); ++l) {
    for (const BlockResult& block : put->blocks) {
      for (size_t p = 0; p < layout_.layers[l].planes.size(); ++p) {
        const size_t row = layout_.layers[l].planes[p].token_bytes();
        expected +=
            AsText({sample_.views()[l][p].data + block.start_position * row, block.tokens * row});
      }
    }
  }
  EXPECT_TRUE(whole.bytes == expected);
  // Nothing is ever given back here: what finds no room comes inline.
  const WindowReply small = get(region->id(), 128, 64 + 3 * 4096, 0);
  EXPECT_TRUE(small.status.ok()) << small.status;
  EXPECT_GT(small.in_window, 0u);
  EXPECT_EQ(small.in_window + small.inline_parts, parts);
  // A count that cannot be is not believed; a region that is not there is not used.
  for (const WindowReply& reply :
       {get(region->id(), 0, region->bytes(), ~uint64_t{0}), get(region->id() + 1, 0, 4096, 0)}) {
    EXPECT_TRUE(reply.status.ok()) << reply.status;
    EXPECT_EQ(reply.inline_parts, parts);
  }
  struct {
    uint64_t offset, bytes;
  } const outside[] = {{0, region->bytes() + 1}, {region->bytes(), 128},
                       {8, region->bytes()},     {4, 4096},
                       {~uint64_t{0} - 7, 4096}, {0, 127},
                       {64, ~uint64_t{0}},       {0, 0}};
  for (const auto& [offset, bytes] : outside) {
    EXPECT_TRUE(absl::IsInvalidArgument(get(region->id(), offset, bytes, 0).status));
  }
}

// Whatever the size of the window, and whoever shares its region.
TEST_F(ClientSharedMemoryTest, GetsThroughSmallWindowsAndBesideOthersAreWhole) {
  for (const size_t bytes : {size_t{8192}, size_t{20'000}, size_t{1} << 20}) {
    Client client = ConnectWith({.shared_memory_bytes = bytes});
    const RegisteredLayout layout = RegisterWith(client);
    auto put = client.PutPrefix(Request(layout));
    ASSERT_TRUE(put.ok() && put->status().ok()) << put.status();
    std::vector<std::thread> readers;
    for (int i = 0; i < 4; ++i) {
      readers.emplace_back([&] {
        for (int n = 0; n < 5; ++n) ExpectStored(client, layout);
      });
    }
    for (std::thread& reader : readers) reader.join();
  }
}

// Breaks a get off at its first layer.
class StoppingSink : public GetSink {
 public:
  absl::Status OnBlock(const ServedBlock&) override { return absl::OkStatus(); }
  absl::StatusOr<MutablePlaneView> Destination(uint32_t, uint32_t, uint32_t) override {
    return MutablePlaneView{};
  }
  absl::Status OnLayer(uint32_t) override { return absl::AbortedError("stop"); }
  absl::Status OnBlockFailed(uint32_t, const absl::Status& why) override { return why; }
  absl::Status OnRestart() override { return absl::OkStatus(); }
};

TEST_F(ClientSharedMemoryTest, AGetThatIsBrokenOffGivesItsSharedMemoryUp) {
  Client client = ConnectWith({});
  const RegisteredLayout layout = RegisterWith(client);
  auto put = client.PutPrefix(Request(layout));
  ASSERT_TRUE(put.ok() && put->status().ok()) << put.status();
  GetRequest get;
  get.layout = layout;
  for (const BlockResult& block : put->blocks) get.content_hashes.push_back(block.content_hash);
  for (int i = 0; i < 5; ++i) {
    StoppingSink sink;
    EXPECT_TRUE(absl::IsAborted(client.Get(get, sink)));
    ExpectStored(client, layout);
  }
  // One for puts and one for gets.
  EXPECT_TRUE(testing::Eventually([&] { return daemon_.Regions() == 2; })) << daemon_.Regions();
}

TEST_F(ClientSharedMemoryTest, ABlockLargerThanTheRegionGoesOverTheSocket) {
  Client client = ConnectWith({.shared_memory_bytes = 4096});
  const RegisteredLayout layout = RegisterWith(client);
  auto put = client.PutPrefix(Request(layout));
  ASSERT_TRUE(put.ok() && put->status().ok()) << put.status();
  ExpectStored(client, layout);
}

TEST_F(ClientSharedMemoryTest, AServerWithoutSharedMemoryIsReachedOverTheSocket) {
  StartServer({"--shared_memory_bytes=0"});
  Client client = ConnectWith({});
  const RegisteredLayout layout = RegisterWith(client);
  auto put = client.PutPrefix(Request(layout));
  ASSERT_TRUE(put.ok() && put->status().ok()) << put.status();
  ExpectStored(client, layout);
}

// What a hostile or broken client can write into a RegionPart.
TEST_F(ClientSharedMemoryTest, HostileRegionPartsHarmTheirOwnBlockOnly) {
  auto stub = MakeGrpcStub(Address(), {});
  ASSERT_TRUE(stub.ok());
  RegionClient regions(**stub, 1 << 20);
  const auto region = Lease(regions);
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

// Without a checksum the daemon encodes right out of the region, which a client may write to
// meanwhile: what it stores then is anything, but a sound frame of that block, and it lives.
TEST_F(ClientSharedMemoryTest, AScribblingClientWithoutChecksumHarmsItsOwnBlockOnly) {
  auto stub = MakeGrpcStub(Address(), {});
  ASSERT_TRUE(stub.ok());
  RegionClient regions(**stub, 1 << 20);
  const auto region = Lease(regions);
  ASSERT_NE(region, nullptr);
  Client client = ConnectWith({});
  const RegisteredLayout layout = RegisterWith(client);
  const size_t payload_bytes = layout_.token_bytes() * kChunk;
  std::atomic<bool> stop{false};
  std::thread scribbler([&] {
    // Every value that a half has, infinities and no numbers among them.
    for (uint32_t i = 0; !stop; ++i) {
      StoreLe(region->at(2 * (i * 7919ULL % (payload_bytes / 2))),
              static_cast<uint16_t>(i * 40503));
    }
  });
  constexpr v1::Preset kPresets[] = {v1::PRESET_EXACT, v1::PRESET_NEAR, v1::PRESET_TINY,
                                     v1::PRESET_SEED};
  for (uint32_t i = 0; i < 40; ++i) {
    auto stream = (*stub)->PutBlocks();
    v1::PutBlocksRequest message;
    *message.mutable_open() = Open();
    message.mutable_open()->set_preset(kPresets[i % 4]);
    if (i % 4 == 3) {
      message.mutable_open()->mutable_seed()->set_key_bits(3);
      message.mutable_open()->mutable_seed()->set_value_bits(2);
    }
    ASSERT_TRUE(stream->Write(message));
    const Block block = MakeBlock(7000 + 100 * i);
    std::memcpy(region->at(0), block.payload.data(), block.payload.size());
    *message.mutable_header() = block.header;
    ASSERT_TRUE(stream->Write(message));
    v1::PutBlocksResponse answer;
    ASSERT_TRUE(stream->Read(answer));
    message.mutable_region_part()->set_index(block.header.index());
    message.mutable_region_part()->set_region_id(region->id());
    ASSERT_TRUE(stream->Write(message));
    ASSERT_TRUE(stream->Read(answer));
    ASSERT_TRUE(answer.has_ack());
    EXPECT_FALSE(answer.ack().has_error()) << answer.DebugString();
    stream->WritesDone();
    EXPECT_FALSE(stream->Read(answer));
    EXPECT_TRUE(stream->Finish().ok());
    GetRequest get;
    get.layout = layout;
    get.content_hashes = {block.hash};
    const auto got = client.GetPrefix(get);
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_TRUE(got->miss.ok()) << got->miss;
  }
  stop = true;
  scribbler.join();
}

TEST_F(ClientSharedMemoryTest, AScribblingClientHarmsItsOwnBlockOnly) {
  auto stub = MakeGrpcStub(Address(), {});
  ASSERT_TRUE(stub.ok());
  RegionClient regions(**stub, 1 << 20);
  const auto region = Lease(regions);
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

TEST_F(ClientSharedMemoryTest, TheRegionCannotBeCutUnderTheServer) {
  auto stub = MakeGrpcStub(Address(), {});
  ASSERT_TRUE(stub.ok());
  RegionClient regions(**stub, 1 << 20);
  ASSERT_NE(Lease(regions), nullptr);
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

}  // namespace
}  // namespace latticekv
