// As much of the Redis protocol as a comparison needs: SET and GET of one value.
#ifndef LATTICEKV_CLIENT_CLI_REDIS_CLIENT_H_
#define LATTICEKV_CLIENT_CLI_REDIS_CLIENT_H_

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace latticekv {

// One connection, blocking. Not thread-safe.
class RedisClient {
 public:
  // `address` is `unix:PATH` or `127.0.0.1:PORT`.
  static absl::StatusOr<std::unique_ptr<RedisClient>> Connect(const std::string& address);
  ~RedisClient();
  RedisClient(const RedisClient&) = delete;
  RedisClient& operator=(const RedisClient&) = delete;

  absl::Status Set(std::string_view key, std::string_view value);
  // Into `value`; NOT_FOUND when there is none.
  absl::Status Get(std::string_view key, std::string& value);

 private:
  explicit RedisClient(int socket) : socket_(socket) {}
  absl::Status Send(std::string_view head, std::string_view value);
  absl::Status ReadLine(std::string& line);
  absl::Status Fill();

  const int socket_;
  std::string buffer_;
  size_t begin_ = 0;  // of what is unread in buffer_
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_CLI_REDIS_CLIENT_H_
