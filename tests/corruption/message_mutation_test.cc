// Damaged messages: a server that is sent anything that parses stays up, answers every call with a
// status, keeps nothing of what failed and serves nothing wrong. LATTICEKV_MESSAGE_MUTATIONS sets
// the number of calls (4,000 by default), LATTICEKV_SEED the seed.
#include <google/protobuf/stubs/logging.h>

#include <cstdlib>

#include "core/base/crc32c.h"
#include "tests/support/mutation.h"
#include "tests/support/sample_chunk.h"
#include "tests/support/service_fixture.h"

namespace latticekv::testing {
namespace {

class MessageMutationTest : public ServiceFixture {
 protected:
  void SetUp() override {
    // Strings that are not UTF-8 are the point here, not news.
    google::protobuf::SetLogHandler(nullptr);
    ServiceFixture::SetUp();
    // Uploads are cut off by their half-close: a short idle timeout would cut off sound ones too,
    // when this process has to wait for its turn.
    StartServer([](ServerConfig& config) {
      config.memory_bytes = 8 << 20;
      config.credit_wait_timeout_ms = 50;
    });
  }

  // Changes some bytes of the message's wire form until what comes out parses again.
  template <typename Message>
  Message Mutated(const Message& message) {
    for (int attempt = 0; attempt < 50; ++attempt) {
      std::string bytes = message.SerializeAsString();
      const int changes = 1 + static_cast<int>(random_.Below(4));
      for (int i = 0; i < changes && !bytes.empty(); ++i) {
        const size_t at = random_.Below(static_cast<uint32_t>(bytes.size()));
        switch (random_.Below(5)) {
          case 0:
            bytes[at] = static_cast<char>(bytes[at] ^ (1 << random_.Below(8)));
            break;
          case 1:
            bytes[at] = static_cast<char>(random_.Next());
            break;
          case 2:
            bytes.resize(at);
            break;
          case 3:
            bytes.insert(at, 1 + random_.Below(12), static_cast<char>(random_.Next()));
            break;
          default:
            bytes[at] = static_cast<char>(0xFF);
        }
      }
      Message out;
      if (out.ParseFromString(bytes)) return out;
    }
    return message;
  }

  // Puts `block` with one message of the stream mutated; reads until the end of the stream.
  void PutMutated(const TestBlock& block, v1::Preset preset) {
    const uint32_t target = random_.Below(3);
    v1::PutBlocksRequest open, header, part;
    *open.mutable_open() = Open(preset, random_.Below(2) ? "session" : "");
    *header.mutable_header() = block.header;
    part.mutable_part()->set_index(block.header.index());
    part.mutable_part()->set_data(block.payload);
    part.mutable_part()->set_crc32c(Crc32c(AsBytes(block.payload)));
    if (target == 0) open = Mutated(open);
    if (target == 1) header = Mutated(header);
    if (target == 2) part = Mutated(part);
    const auto call = client_->PutBlocks();
    v1::PutBlocksResponse response;
    if (call->Write(open) && call->Write(header) && call->Read(&response) &&
        response.has_credit()) {
      call->Write(part);
    }
    call->WritesDone();
    while (call->Read(&response)) {
      if (response.has_ack() && response.ack().has_error()) {
        EXPECT_FALSE(response.ack().error().message().empty());
      }
    }
    const CallStatus status = call->Finish();
    EXPECT_TRUE(status.ok() || !status.message.empty());
  }

  void CallMutated(const std::vector<TestBlock>& blocks) {
    switch (random_.Below(6)) {
      case 0: {
        v1::LookupRequest request;
        request.set_fingerprint(fingerprint_);
        for (uint32_t id : Ids(1, 40)) request.add_token_ids(id);
        client_->Lookup(Mutated(request));
        break;
      }
      case 1: {
        v1::GetBlocksRequest request;
        request.set_fingerprint(fingerprint_);
        request.set_session("session");
        for (const TestBlock& block : blocks) request.add_content_hashes(block.hash());
        const auto call = client_->GetBlocks(Mutated(request));
        v1::GetBlocksResponse response;
        while (call->Read(&response)) {
        }
        call->Finish();
        break;
      }
      case 2: {
        v1::PinRequest request;
        request.mutable_blocks()->add_content_hashes(blocks[0].hash());
        request.set_ttl_ms(1);
        client_->Pin(Mutated(request));
        break;
      }
      case 3: {
        v1::DeleteRequest request;
        request.mutable_blocks()->set_session("session");
        client_->Delete(Mutated(request));
        break;
      }
      case 4: {
        v1::ListBlocksRequest request;
        request.set_page_size(3);
        request.set_page_token("00");
        client_->ListBlocks(Mutated(request));
        break;
      }
      default: {
        v1::TouchRequest request;
        request.mutable_blocks()->add_content_hashes(blocks[1].hash());
        request.set_ttl_ms(1000);
        client_->Touch(Mutated(request));
      }
    }
  }

  Random random_{FromEnvironment("LATTICEKV_SEED", 31415)};
};

TEST_F(MessageMutationTest, TheServerStaysUpAndKeepsNothingOfWhatFailed) {
  const uint64_t calls = FromEnvironment("LATTICEKV_MESSAGE_MUTATIONS", 4'000);
  const std::vector<TestBlock> blocks = MakeBlocks(Ids(1, 3 * kTestChunk));
  for (uint64_t n = 0; n < calls; ++n) {
    if (random_.Below(3) == 0) {
      CallMutated(blocks);
    } else {
      PutMutated(blocks[random_.Below(3)],
                 random_.Below(2) ? v1::PRESET_EXACT : v1::PRESET_BALANCED);
    }
    if (HasFailure()) FAIL() << "call " << n;
  }
  // Every stream has ended, so all that is in use is what the store lists.
  WaitUntil([&] {
    return engine().admission().in_flight_bytes() == 0 &&
           memory_used() == engine().store().Stats().stored_bytes;
  });
  // And it still does its work.
  const auto fresh = MakeBlocks(Ids(1000, 2 * kTestChunk));
  for (const v1::BlockAck& ack : Put(Open(v1::PRESET_EXACT), fresh)) {
    EXPECT_FALSE(ack.has_error()) << ack.DebugString();
  }
  const GetResult got = GetHashes({fresh[0].hash(), fresh[1].hash()});
  ASSERT_EQ(got.payloads.size(), 2u);
  EXPECT_EQ(got.payloads[0], fresh[0].payload);
  EXPECT_EQ(got.payloads[1], fresh[1].payload);
  EXPECT_LE(engine().store().Stats().memory_peak_bytes, size_t{8} << 20);
}

}  // namespace
}  // namespace latticekv::testing
