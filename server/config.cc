#include "server/config.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace latticekv {
namespace {

constexpr size_t kMinMemoryBytes = 1 << 20;
constexpr uint64_t kMinDiskBytes = 1 << 20;
constexpr int kMaxCodecThreads = 1024;
constexpr int kMaxReadThreads = 256;
constexpr size_t kMaxSocketPathBytes = sizeof(sockaddr_un::sun_path) - 1;

}  // namespace

std::vector<std::string> DefaultListen() {
  const char* runtime_dir = std::getenv("XDG_RUNTIME_DIR");
  std::string path;
  if (runtime_dir != nullptr && *runtime_dir != '\0') {
    path = absl::StrCat(runtime_dir, "/latticekvd.sock");
  } else if (geteuid() == 0) {
    path = "/run/latticekvd.sock";
  } else {
    path = absl::StrCat("/tmp/latticekvd-", geteuid(), ".sock");
  }
  return {absl::StrCat("unix:", path), absl::StrCat("127.0.0.1:", kDefaultPort)};
}

absl::StatusOr<ListenAddress> ParseListenAddress(std::string_view text) {
  ListenAddress out;
  if (text.starts_with("unix:")) {
    out.is_unix = true;
    out.path = text.substr(5);
    if (out.path.starts_with("//")) out.path.erase(0, 2);  // unix:///absolute/path
    if (out.path.empty() || out.path.size() > kMaxSocketPathBytes) {
      return absl::InvalidArgumentError(absl::StrCat("the socket path of '", std::string(text),
                                                     "' must have 1 to ", kMaxSocketPathBytes,
                                                     " bytes; choose a shorter one"));
    }
    return out;
  }
  const size_t colon = text.rfind(':');
  int port = -1;
  if (colon == std::string_view::npos || colon == 0 ||
      !absl::SimpleAtoi(std::string(text.substr(colon + 1)), &port) || port < 0 || port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("listen address '", std::string(text),
                                                   "' is neither unix:PATH nor HOST:PORT"));
  }
  out.host = text.substr(0, colon);
  out.port = port;
  if (out.host.starts_with('[') && out.host.ends_with(']')) {
    out.host = out.host.substr(1, out.host.size() - 2);
  } else if (out.host.find(':') != std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("listen address '", std::string(text),
                                                   "' needs brackets: [", out.host, "]:", port));
  }
  return out;
}

std::string FormatListenAddress(const ListenAddress& a) {
  if (a.is_unix) return absl::StrCat("unix:", a.path);
  const bool v6 = a.host.find(':') != std::string::npos;
  return absl::StrCat(v6 ? "[" : "", a.host, v6 ? "]:" : ":", a.port);
}

bool IsLoopback(const ListenAddress& a) {
  return a.is_unix || a.host == "localhost" || a.host == "::1" || a.host.starts_with("127.");
}

namespace {

absl::Status ValidateGpu(const GpuConfig& gpu) {
  if (gpu.use == GpuConfig::Use::kOff) return absl::OkStatus();
  if (gpu.options.memory_bytes < limits::kMinGpuMemoryBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("--gpu_memory_bytes is ", gpu.options.memory_bytes, "; it must be at least ",
                     limits::kMinGpuMemoryBytes));
  }
  if (gpu.options.sm_percent < 1 || gpu.options.sm_percent > 100) {
    return absl::InvalidArgumentError(
        absl::StrCat("--gpu_sm_percent is ", gpu.options.sm_percent, "; use 1 to 100"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateConfig(const ServerConfig& config) {
  for (const std::string& text : config.listen) {
    LKV_ASSIGN_OR_RETURN(const ListenAddress address, ParseListenAddress(text));
    if (!IsLoopback(address) && !config.insecure) {
      return absl::InvalidArgumentError(absl::StrCat(
          "'", text,
          "' can be reached from other hosts and this daemon serves without encryption; "
          "listen on loopback or a unix socket, or pass --insecure if the network is trusted"));
    }
  }
  if (config.memory_bytes < kMinMemoryBytes) {
    return absl::InvalidArgumentError(absl::StrCat("--memory_bytes is ", config.memory_bytes,
                                                   "; it must be at least ", kMinMemoryBytes));
  }
  if (config.disk_dir.empty() != (config.disk_bytes == 0)) {
    return absl::InvalidArgumentError(
        "--disk_dir and --disk_bytes go together; give both, or neither to store in memory only");
  }
  if (!config.disk_dir.empty() && config.disk_bytes < kMinDiskBytes) {
    return absl::InvalidArgumentError(absl::StrCat("--disk_bytes is ", config.disk_bytes,
                                                   "; it must be at least ", kMinDiskBytes));
  }
  LKV_RETURN_IF_ERROR(ValidateGpu(config.gpu));
  if (config.codec_threads < 0 || config.codec_threads > kMaxCodecThreads) {
    return absl::InvalidArgumentError(absl::StrCat("--codec_threads is ", config.codec_threads,
                                                   "; use 1 to ", kMaxCodecThreads,
                                                   ", or 0 for one per hardware thread"));
  }
  if (config.read_threads < 1 || config.read_threads > kMaxReadThreads) {
    return absl::InvalidArgumentError(
        absl::StrCat("--read_threads is ", config.read_threads, "; use 1 to ", kMaxReadThreads));
  }
  return absl::OkStatus();
}

absl::Status RemoveStaleSocket(const std::string& path) {
  struct stat info;
  if (lstat(path.c_str(), &info) != 0) {
    if (errno == ENOENT) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat("cannot look at socket path ", path, ": ", std::strerror(errno)));
  }
  if (!S_ISSOCK(info.st_mode)) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " exists and is not a socket; choose another path"));
  }
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return absl::InternalError(absl::StrCat("socket: ", std::strerror(errno)));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), kMaxSocketPathBytes);
  const int rc = connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  const int error = errno;
  close(fd);
  if (rc == 0 || error != ECONNREFUSED) {
    return absl::FailedPreconditionError(
        absl::StrCat("another process listens on ", path, "; stop it or choose another path"));
  }
  if (unlink(path.c_str()) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot remove the stale socket ", path, ": ", std::strerror(errno)));
  }
  return absl::OkStatus();
}

}  // namespace latticekv
