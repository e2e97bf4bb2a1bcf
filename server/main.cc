// latticekvd: the daemon.
#include <grpc/support/log.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/admin_views.h"
#include "server/flags.h"
#include "server/server.h"
#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"

namespace latticekv {
namespace {

constexpr int kExitError = 1;
constexpr int kExitUsage = 2;
constexpr int kMappedAloneBytes = 1 << 20;
constexpr int kKeptForMessagesBytes = 4 * (4 << 20);  // a few messages of kMaxPartBytes

int Fail(const absl::Status& status, int code) {
  std::fprintf(stderr, "latticekvd: %s\n", std::string(status.message()).c_str());
  return code;
}

// Readers see either no file or all of it.
absl::Status WritePortFile(const std::string& path, const std::vector<std::string>& addresses) {
  const std::string temporary = absl::StrCat(path, ".", getpid());
  std::ofstream out(temporary);
  out << absl::StrJoin(addresses, "\n") << "\n";
  out.close();
  if (!out || std::rename(temporary.c_str(), path.c_str()) != 0) {
    std::remove(temporary.c_str());
    return absl::FailedPreconditionError(
        absl::StrCat("cannot write --port_file ", path, ": ", std::strerror(errno)));
  }
  return absl::OkStatus();
}

// The signals that end the daemon, blocked in this thread and those it starts.
sigset_t BlockEndSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  return signals;
}

// A segment takes two descriptors and a stream one: the usual soft limit of 1024 is soon reached.
void RaiseDescriptorLimit() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

// What the library says of its own goes to the debug level: our errors tell what matters.
void LogGrpc(gpr_log_func_args* args) {
  spdlog::debug("grpc: {} ({}:{})", args->message, args->file, args->line);
}

// Buffers of messages stay with malloc for the next message: given back to the kernel, every page
// of the next one is made and cleared anew. What is larger than a buffer of the transport (stored
// frames) is mapped by itself and leaves memory when it is freed.
void KeepMessageBuffers() {
  mallopt(M_MMAP_THRESHOLD, kMappedAloneBytes);
  mallopt(M_TRIM_THRESHOLD, kKeptForMessagesBytes);
}

int Run(int argc, char** argv) {
  KeepMessageBuffers();
  auto flags = ParseFlags(argc, argv);
  if (!flags.ok()) return Fail(flags.status(), kExitUsage);
  spdlog::set_default_logger(spdlog::stderr_color_mt("latticekvd"));
  spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %^%l%$ %v");
  spdlog::set_level(spdlog::level::from_str(flags->log_level));
  spdlog::flush_on(spdlog::level::info);

  gpr_set_log_function(LogGrpc);

  RaiseDescriptorLimit();
  const sigset_t signals = BlockEndSignals();
  flags->server.on_drain_requested = [] { kill(getpid(), SIGTERM); };
  auto server = Server::Start(flags->server);
  if (!server.ok()) return Fail(server.status(), kExitError);
  spdlog::info("latticekvd {} serves on {}; memory {} bytes, codec {} on {} threads; started in {}",
               ServerVersion(), absl::StrJoin((*server)->addresses(), ", "),
               flags->server.memory_bytes, CodecInUse(), (*server)->engine().codec_pool().threads(),
               (*server)->engine().start_phases().ToString());
  if (!flags->port_file.empty()) {
    if (auto written = WritePortFile(flags->port_file, (*server)->addresses()); !written.ok()) {
      return Fail(written, kExitError);
    }
  }
  int signal_number = 0;
  sigwait(&signals, &signal_number);
  spdlog::info("draining (signal {})", signal_number);
  (*server)->Drain();
  server->reset();
  spdlog::info("stopped");
  return 0;
}

}  // namespace
}  // namespace latticekv

int main(int argc, char** argv) { return latticekv::Run(argc, argv); }
