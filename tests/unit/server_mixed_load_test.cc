// Clients that put, read, look up, delete and give up at once, at a cap that forces eviction: what
// is served is right, memory stays under the cap, and nothing is left in flight at the end.
#include <atomic>
#include <random>
#include <thread>

#include "tests/support/service_fixture.h"

namespace latticekv::testing {
namespace {

using MixedLoadTest = ServiceFixture;

constexpr size_t kMemoryBytes = 1 << 20;
constexpr int kThreads = 6;
constexpr int kRounds = 40;

TEST_F(MixedLoadTest, EveryByteServedIsRight) {
  StartServer([](ServerConfig& config) { config.memory_bytes = kMemoryBytes; });
  std::vector<std::vector<TestBlock>> sequences;
  for (uint32_t s = 0; s < 12; ++s) {
    sequences.push_back(MakeBlocks(Ids(1 + s * 1000, 4 * kTestChunk - s), s));
  }
  std::atomic<uint64_t> served{0}, missed{0};
  const auto work = [&](int thread) {
    std::mt19937 random(thread);
    for (int round = 0; round < kRounds; ++round) {
      const auto& blocks = sequences[random() % sequences.size()];
      switch (random() % 6) {
        case 0:
        case 1:
          for (const v1::BlockAck& ack : Put(Open(v1::PRESET_EXACT, "s"), {blocks[0]})) {
            EXPECT_FALSE(ack.has_error()) << ack.error().message();
          }
          break;
        case 2:
          Put(Open(v1::PRESET_HIGH), {blocks.begin() + 1, blocks.end()});
          break;
        case 3: {
          std::vector<std::string> hashes;
          for (const TestBlock& block : blocks) hashes.push_back(block.hash());
          const GetResult got = GetHashes(hashes);
          EXPECT_TRUE(got.status.ok()) << got.status.message;
          EXPECT_TRUE(got.checksums_ok);
          EXPECT_TRUE(got.failed.empty());
          for (size_t i = 0; i < got.opens.size(); ++i) {
            if (got.opens[i].has_miss()) {
              ++missed;
              continue;
            }
            ++served;
            ASSERT_EQ(got.payloads[i].size(), blocks[i].payload.size());
            if (got.opens[i].block().quality().exact()) {
              EXPECT_TRUE(got.payloads[i] == blocks[i].payload);
            }
          }
          break;
        }
        case 4: {
          const auto call = client_->PutBlocks();
          call->WriteOpen(Open());
          call->WriteHeader(blocks[1].header);
          v1::PutBlocksResponse response;
          call->Read(&response);
          if (response.has_credit()) call->WritePart(1, 0, blocks[1].payload.substr(0, 999));
          break;  // and hangs up
        }
        default: {
          v1::DeleteRequest remove;
          remove.mutable_blocks()->add_content_hashes(blocks[0].hash());
          EXPECT_TRUE(client_->Delete(remove).status.ok());
        }
      }
      EXPECT_LE(engine().store().Stats().memory_used_bytes, kMemoryBytes);
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back(work, i);
  for (std::thread& thread : threads) thread.join();

  WaitUntil([&] { return client_->Stats().response.open_streams() == 0; });
  // A credit that came when its stream had ended is given back a moment later.
  WaitUntil([&] { return engine().admission().in_flight_bytes() == 0; });
  EXPECT_GT(served, 0u);
  EXPECT_GT(missed, 0u);
  const auto stats = client_->Stats().response;
  EXPECT_LE(stats.memory_peak_bytes(), kMemoryBytes);
  EXPECT_EQ(stats.corrupt_blocks(), 0u);

  // All of it can be given back.
  v1::DeleteRequest remove;
  for (const auto& blocks : sequences) {
    for (const TestBlock& block : blocks) remove.mutable_blocks()->add_content_hashes(block.hash());
  }
  EXPECT_TRUE(client_->Delete(remove).status.ok());
  WaitUntil([&] { return memory_used() == 0; });
  EXPECT_EQ(client_->Stats().response.raw_bytes(), 0u);
}

}  // namespace
}  // namespace latticekv::testing
