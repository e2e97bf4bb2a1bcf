// A server in the test's own process, on a unix socket in a folder of its own, and chunks of a
// small layout to put into it.
#ifndef LATTICEKV_TESTS_SUPPORT_SERVICE_FIXTURE_H_
#define LATTICEKV_TESTS_SUPPORT_SERVICE_FIXTURE_H_

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/layout/layout.h"
#include "server/config.h"
#include "server/server.h"
#include "tests/support/service_client.h"

namespace latticekv::testing {

inline constexpr uint32_t kTestChunk = 16;  // tokens

// A chunk ready to be put.
struct TestBlock {
  v1::BlockHeader header;
  std::string payload;
  const std::string& hash() const { return header.content_hash(); }
};

// What a GetBlocks stream answered.
struct GetResult {
  CallStatus status;
  std::vector<v1::BlockOpen> opens;
  std::vector<v1::BlockOpen> failed;
  std::vector<std::pair<uint32_t, uint32_t>> order;  // (layer, block) of each part
  std::vector<std::string> payloads;                 // by block, parts at their offsets
  bool checksums_ok = true;
  size_t largest_part = 0;
};

class ServiceFixture : public ::testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;

  // Starts the server (again), with `adjust` applied to the configuration.
  void StartServer(const std::function<void(ServerConfig&)>& adjust = {});
  CacheEngine& engine() { return server_->engine(); }
  size_t memory_used() { return engine().store().Stats().memory_used_bytes; }

  // Registers `layout` in `name_space` and returns its fingerprint.
  std::string Register(const Layout& layout, const std::string& name_space = "");
  v1::PutOpen Open(v1::Preset preset = v1::PRESET_EXACT, const std::string& session = "");

  // Chunks of the whole sequence under layout_; payload bytes depend on the position and `seed`.
  std::vector<TestBlock> MakeBlocks(const std::vector<uint32_t>& token_ids, uint32_t seed = 1);
  static std::vector<uint32_t> Ids(uint32_t first, uint32_t count);

  // Puts the blocks one after the other; acknowledgements in their order.
  std::vector<v1::BlockAck> Put(const v1::PutOpen& open, const std::vector<TestBlock>& blocks);
  v1::BlockAck PutOne(const v1::PutOpen& open, const TestBlock& block);
  GetResult Get(const v1::GetBlocksRequest& request);
  GetResult GetHashes(const std::vector<std::string>& hashes,
                      v1::Encoding encoding = v1::ENCODING_RAW);
  v1::LookupResponse LookupIds(const std::vector<uint32_t>& ids);

  // Waits, without a deadline of its own (ctest has one), until `condition` holds.
  static void WaitUntil(const std::function<bool()>& condition);

  std::string directory_;
  Layout layout_;
  std::string fingerprint_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<ServiceClient> client_;
};

// `bytes` bytes of finite f16 values.
std::string RandomHalves(size_t bytes, uint32_t seed);

}  // namespace latticekv::testing

#endif  // LATTICEKV_TESTS_SUPPORT_SERVICE_FIXTURE_H_
