// A Connection for tests of code that uses a latticekv::Client:
//
//   auto connection = std::make_shared<latticekv::MockConnection>();
//   EXPECT_CALL(*connection, Lookup).WillOnce(Return(result));
//   latticekv::Client client(connection);
#ifndef LATTICEKV_MOCKS_MOCK_CONNECTION_H_
#define LATTICEKV_MOCKS_MOCK_CONNECTION_H_

#include <gmock/gmock.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "latticekv/connection.h"

namespace latticekv {

class MockConnection : public Connection {
 public:
  MOCK_METHOD(absl::StatusOr<RegisteredLayout>, RegisterLayout, (const RegisterLayoutRequest&),
              (override));
  MOCK_METHOD(absl::StatusOr<std::shared_ptr<GpuCache>>, OpenGpuCache, (const GpuCacheSpec&),
              (override));
  MOCK_METHOD(absl::StatusOr<PutResult>, PutPrefix, (const PutRequest&), (override));
  MOCK_METHOD(absl::StatusOr<std::vector<PutResult>>, PutBatch, (const std::vector<PutRequest>&),
              (override));
  MOCK_METHOD(absl::StatusOr<LookupResult>, Lookup, (const LookupRequest&), (override));
  MOCK_METHOD(absl::Status, Get, (const GetRequest&, GetSink&), (override));
  MOCK_METHOD(absl::StatusOr<SelectionResult>, Touch, (const BlockSelector&, int64_t), (override));
  MOCK_METHOD(absl::StatusOr<SelectionResult>, Pin, (const BlockSelector&, int64_t), (override));
  MOCK_METHOD(absl::StatusOr<SelectionResult>, Unpin, (const BlockSelector&), (override));
  MOCK_METHOD(absl::StatusOr<SelectionResult>, Delete, (const BlockSelector&), (override));
  MOCK_METHOD(absl::StatusOr<SessionPage>, ListSessions, (const ListRequest&), (override));
  MOCK_METHOD(absl::StatusOr<SessionDetail>, GetSession, (const std::string&, const std::string&),
              (override));
  MOCK_METHOD(absl::StatusOr<BlockPage>, ListBlocks, (const ListRequest&), (override));
  MOCK_METHOD(absl::StatusOr<BlockDetail>, GetBlock, (const std::string&, const std::string&),
              (override));
  MOCK_METHOD(absl::StatusOr<ServerStats>, Stats, (), (override));
  MOCK_METHOD(absl::StatusOr<MissExplanation>, ExplainMiss,
              (const std::string&, const std::string&), (override));
  MOCK_METHOD(absl::StatusOr<VerifyResult>, Verify,
              (const std::function<void(const VerifyResult&)>&), (override));
  MOCK_METHOD(absl::Status, Flush, (), (override));
  MOCK_METHOD(absl::Status, Drain, (), (override));
};

}  // namespace latticekv

#endif  // LATTICEKV_MOCKS_MOCK_CONNECTION_H_
