// A test of a worker that uses the shipped mock instead of a daemon.
#include <gtest/gtest.h>

#include <memory>

#include "latticekv/client.h"
#include "latticekv/mocks/mock_connection.h"

TEST(Worker, PrefillsWhatIsNotStored) {
  auto connection = std::make_shared<latticekv::MockConnection>();
  latticekv::LookupResult miss;
  miss.miss = absl::NotFoundError("not stored");
  EXPECT_CALL(*connection, Lookup).WillOnce(::testing::Return(miss));
  latticekv::Client client(connection);
  const auto found = client.Lookup({});
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->usable_tokens, 0u);
}
