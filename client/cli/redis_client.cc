#include "client/cli/redis_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace latticekv {
namespace {

constexpr size_t kReadBytes = 256 << 10;

absl::Status Broken(const char* what) {
  return absl::UnavailableError(absl::StrCat("redis: ", what, ": ", std::strerror(errno)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<RedisClient>> RedisClient::Connect(const std::string& address) {
  constexpr std::string_view kUnix = "unix:";
  const bool is_unix = address.starts_with(kUnix);
  const int fd = socket(is_unix ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return Broken("socket");
  auto client = std::unique_ptr<RedisClient>(new RedisClient(fd));
  int failed;
  if (is_unix) {
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    const std::string path = address.substr(kUnix.size());
    if (path.size() >= sizeof(name.sun_path)) {
      return absl::InvalidArgumentError("redis: the socket's path is too long");
    }
    std::memcpy(name.sun_path, path.data(), path.size());
    failed = connect(fd, reinterpret_cast<const sockaddr*>(&name), sizeof(name));
  } else {
    sockaddr_in name{};
    int port = 0;
    if (!absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port)) {
      return absl::InvalidArgumentError("redis: the address has no port");
    }
    name.sin_family = AF_INET;
    name.sin_port = htons(static_cast<uint16_t>(port));
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    failed = connect(fd, reinterpret_cast<const sockaddr*>(&name), sizeof(name));
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  }
  if (failed != 0) return Broken("connect");
  return client;
}

RedisClient::~RedisClient() { close(socket_); }

absl::Status RedisClient::Send(std::string_view head, std::string_view value) {
  constexpr std::string_view kEnd = "\r\n";
  iovec pieces[3] = {{const_cast<char*>(head.data()), head.size()},
                     {const_cast<char*>(value.data()), value.size()},
                     {const_cast<char*>(kEnd.data()), kEnd.size()}};
  iovec* next = pieces;
  int count = value.data() == nullptr ? 1 : 3;
  while (count > 0) {
    ssize_t sent = writev(socket_, next, count);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return Broken("write");
    for (; count > 0 && static_cast<size_t>(sent) >= next->iov_len; ++next, --count) {
      sent -= static_cast<ssize_t>(next->iov_len);
    }
    if (count == 0) break;
    next->iov_base = static_cast<char*>(next->iov_base) + sent;
    next->iov_len -= static_cast<size_t>(sent);
  }
  return absl::OkStatus();
}

absl::Status RedisClient::Fill() {
  if (begin_ > 0) {
    buffer_.erase(0, begin_);
    begin_ = 0;
  }
  const size_t held = buffer_.size();
  buffer_.resize(held + kReadBytes);
  const ssize_t got = read(socket_, buffer_.data() + held, kReadBytes);
  buffer_.resize(held + static_cast<size_t>(std::max<ssize_t>(got, 0)));
  return got > 0 ? absl::OkStatus() : Broken("read");
}

absl::Status RedisClient::ReadLine(std::string& line) {
  while (true) {
    const size_t end = buffer_.find("\r\n", begin_);
    if (end != std::string::npos) {
      line = buffer_.substr(begin_, end - begin_);
      begin_ = end + 2;
      if (line.starts_with("-")) return absl::InternalError(absl::StrCat("redis: ", line));
      return absl::OkStatus();
    }
    LKV_RETURN_IF_ERROR(Fill());
  }
}

absl::Status RedisClient::Set(std::string_view key, std::string_view value) {
  LKV_RETURN_IF_ERROR(Send(absl::StrCat("*3\r\n$3\r\nSET\r\n$", key.size(), "\r\n",
                                        std::string(key), "\r\n$", value.size(), "\r\n"),
                           value));
  std::string line;
  LKV_RETURN_IF_ERROR(ReadLine(line));
  if (line == "+OK") return absl::OkStatus();
  return absl::InternalError("redis: SET was not acknowledged");
}

absl::Status RedisClient::Get(std::string_view key, std::string& value) {
  LKV_RETURN_IF_ERROR(
      Send(absl::StrCat("*2\r\n$3\r\nGET\r\n$", key.size(), "\r\n", std::string(key), "\r\n"), {}));
  std::string line;
  LKV_RETURN_IF_ERROR(ReadLine(line));
  int64_t size = -1;
  if (!line.starts_with("$") || !absl::SimpleAtoi(line.substr(1), &size) || size < 0) {
    return absl::NotFoundError("redis: the value is gone");
  }
  // Straight into the value, without a way over the buffer.
  const size_t total = static_cast<size_t>(size) + 2;
  value.resize(total);
  size_t have = std::min(total, buffer_.size() - begin_);
  std::memcpy(value.data(), buffer_.data() + begin_, have);
  begin_ += have;
  while (have < total) {
    const ssize_t got = read(socket_, value.data() + have, total - have);
    if (got <= 0) return Broken("read");
    have += static_cast<size_t>(got);
  }
  value.resize(static_cast<size_t>(size));
  return absl::OkStatus();
}

}  // namespace latticekv
