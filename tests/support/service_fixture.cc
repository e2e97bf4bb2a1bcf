#include "tests/support/service_fixture.h"

#include <stdlib.h>

#include <chrono>
#include <filesystem>
#include <random>
#include <thread>

#include "core/base/crc32c.h"
#include "core/layout/chain_hash.h"
#include "server/block_metadata.h"
#include "server/layout_proto.h"

namespace latticekv::testing {

std::string RandomHalves(size_t bytes, uint32_t seed) {
  std::mt19937 random(seed);
  std::string out(bytes, '\0');
  for (size_t i = 0; i + 1 < bytes; i += 2) {
    // Sign, exponent of 0.25 to 2, mantissa.
    const uint32_t r = random();
    const auto half =
        static_cast<uint16_t>((r & 0x8000) | ((13 + (r >> 16) % 3) << 10) | (r & 0x3ff));
    StoreLe(out.data() + i, half);
  }
  return out;
}

void ServiceFixture::SetUp() {
  char name[] = "/tmp/lkv_test_XXXXXX";
  ASSERT_NE(mkdtemp(name), nullptr);
  directory_ = name;
  layout_ = MakeUniformLayout("test-model", 3, 2, 64, DType::kF16, {RopeStyle::kNeox, 64, 10000.0});
  StartServer();
}

void ServiceFixture::TearDown() {
  client_.reset();
  server_.reset();
  std::filesystem::remove_all(directory_);
}

void ServiceFixture::StartServer(const std::function<void(ServerConfig&)>& adjust) {
  client_.reset();
  server_.reset();
  ServerConfig config;
  config.listen = {"unix:" + directory_ + "/s"};
  config.memory_bytes = 16 << 20;
  config.codec_threads = 2;
  config.tick_ms = 5;
  config.learn_profiles = false;  // tests of it turn it on
  if (adjust) adjust(config);
  auto server = Server::Start(config);
  ASSERT_TRUE(server.ok()) << server.status();
  server_ = *std::move(server);
  client_ = ServiceClient::Connect(server_->addresses()[0]);
  fingerprint_ = Register(layout_);
}

std::string ServiceFixture::Register(const Layout& layout, const std::string& name_space) {
  v1::RegisterLayoutRequest request;
  request.set_namespace_(name_space);
  request.set_chunk_tokens(kTestChunk);
  LayoutToProto(layout, request.mutable_layout());
  const auto called = client_->RegisterLayout(request);
  EXPECT_TRUE(called.status.ok()) << called.status.message;
  EXPECT_EQ(called.response.chunk_tokens(), kTestChunk);
  return called.response.fingerprint();
}

v1::PutOpen ServiceFixture::Open(v1::Preset preset, const std::string& session) {
  v1::PutOpen open;
  open.set_fingerprint(fingerprint_);
  open.set_preset(preset);
  open.set_session(session);
  return open;
}

std::vector<uint32_t> ServiceFixture::Ids(uint32_t first, uint32_t count) {
  std::vector<uint32_t> ids(count);
  for (uint32_t i = 0; i < count; ++i) ids[i] = first + i;
  return ids;
}

std::vector<TestBlock> ServiceFixture::MakeBlocks(const std::vector<uint32_t>& token_ids,
                                                  uint32_t seed) {
  std::vector<TestBlock> blocks;
  const Digest fingerprint = *DigestFromBytes(fingerprint_, "fingerprint");
  std::optional<Digest> parent;
  for (size_t at = 0; at < token_ids.size(); at += kTestChunk) {
    const size_t count = std::min<size_t>(kTestChunk, token_ids.size() - at);
    const std::span ids = std::span(token_ids).subspan(at, count);
    TestBlock& block = blocks.emplace_back();
    const Digest hash = ChunkHash(fingerprint, parent, ids, "");
    block.header.set_index(static_cast<uint32_t>(blocks.size() - 1));
    block.header.set_content_hash(DigestToBytes(hash));
    if (parent) block.header.set_parent_hash(DigestToBytes(*parent));
    block.header.set_start_position(at);
    block.header.mutable_token_ids()->Add(ids.begin(), ids.end());
    block.payload = RandomHalves(layout_.token_bytes() * count, seed * 1000 + ids[0]);
    block.header.set_payload_bytes(block.payload.size());
    parent = hash;
  }
  return blocks;
}

std::vector<v1::BlockAck> ServiceFixture::Put(const v1::PutOpen& open,
                                              const std::vector<TestBlock>& blocks) {
  std::vector<v1::BlockAck> acks;
  const auto call = client_->PutBlocks();
  call->WriteOpen(open);
  v1::PutBlocksResponse response;
  constexpr size_t kPart = 10'000;  // several parts a block, not on any boundary
  for (const TestBlock& block : blocks) {
    call->WriteHeader(block.header);
    if (!call->Read(&response)) break;
    if (response.has_credit()) {
      EXPECT_EQ(response.credit().index(), block.header.index());
      for (size_t at = 0; at < block.payload.size(); at += kPart) {
        call->WritePart(block.header.index(), at, block.payload.substr(at, kPart));
      }
      if (!call->Read(&response)) break;
    }
    acks.push_back(response.ack());
  }
  call->WritesDone();
  const CallStatus status = call->Finish();
  EXPECT_TRUE(status.ok()) << status.message;
  EXPECT_EQ(acks.size(), blocks.size());
  acks.resize(blocks.size());
  return acks;
}

v1::BlockAck ServiceFixture::PutOne(const v1::PutOpen& open, const TestBlock& block) {
  return Put(open, {block})[0];
}

GetResult ServiceFixture::Get(const v1::GetBlocksRequest& request) {
  GetResult out;
  const auto call = client_->GetBlocks(request);
  v1::GetBlocksResponse response;
  while (call->Read(&response)) {
    if (response.has_open()) {
      EXPECT_EQ(response.open().index(), out.opens.size());
      out.opens.push_back(response.open());
      out.payloads.emplace_back();
    } else if (response.has_failed()) {
      out.failed.push_back(response.failed());
    } else {
      const v1::GetPart& part = response.part();
      if (part.index() >= out.payloads.size()) {
        ADD_FAILURE() << "a part came before its open";
        break;
      }
      out.order.emplace_back(part.layer(), part.index());
      std::string& payload = out.payloads[part.index()];
      if (payload.size() < part.offset() + part.data().size()) {
        payload.resize(part.offset() + part.data().size());
      }
      payload.replace(part.offset(), part.data().size(), part.data());
      out.checksums_ok &= Crc32c(AsBytes(part.data())) == part.crc32c();
      out.largest_part = std::max(out.largest_part, part.data().size());
    }
  }
  out.status = call->Finish();
  return out;
}

GetResult ServiceFixture::GetHashes(const std::vector<std::string>& hashes, v1::Encoding encoding) {
  v1::GetBlocksRequest request;
  request.set_fingerprint(fingerprint_);
  request.set_encoding(encoding);
  for (const std::string& hash : hashes) request.add_content_hashes(hash);
  return Get(request);
}

v1::LookupResponse ServiceFixture::LookupIds(const std::vector<uint32_t>& ids) {
  v1::LookupRequest request;
  request.set_fingerprint(fingerprint_);
  request.mutable_token_ids()->Add(ids.begin(), ids.end());
  const auto called = client_->Lookup(request);
  EXPECT_TRUE(called.status.ok()) << called.status.message;
  return called.response;
}

void ServiceFixture::WaitUntil(const std::function<bool()>& condition) {
  while (!condition()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

}  // namespace latticekv::testing
