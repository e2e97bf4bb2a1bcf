// What a daemon is told at its start.
#ifndef LATTICEKV_SERVER_CONFIG_H_
#define LATTICEKV_SERVER_CONFIG_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/clock.h"
#include "core/base/limits.h"
#include "core/codec/gpu/gpu_device.h"
#include "core/codec/presets.h"
#include "core/io/file_system.h"

namespace latticekv {

// Whether a GPU encodes and decodes.
struct GpuConfig {
  enum class Use {
    kOff,
    kAuto,    // if there is one with enough free memory
    kDevice,  // options.device, or no start
  };
  Use use = Use::kOff;
  GpuOptions options;
  // Replaced by tests.
  std::function<absl::StatusOr<std::unique_ptr<GpuDevice>>(const GpuOptions&)> open =
      OpenCudaDevice;
};

// Enough to keep one disk busy.
inline constexpr int kDefaultReadThreads = 8;

struct ServerConfig {
  std::vector<std::string> listen;  // `unix:PATH` or `HOST:PORT`; empty: DefaultListen()
  bool insecure = false;            // allow plaintext TCP on other than loopback addresses
  size_t memory_bytes = size_t{1} << 30;
  std::string disk_dir;  // empty: blocks are kept in memory only
  uint64_t disk_bytes = 0;
  int read_threads = kDefaultReadThreads;  // reads from disk under way at once
  int codec_threads = 0;                   // 0: one per hardware thread
  // Of all regions leased to clients on this host, beside memory_bytes; 0: no shared memory.
  size_t shared_memory_bytes = size_t{1} << 30;
  PresetId default_preset = kDefaultPreset;
  GpuConfig gpu;
  // Learn means and spreads of layouts that have no profile with them (server/profile_learning.h).
  bool learn_profiles = true;

  // Named limits, shortened by tests.
  size_t decode_ahead_bytes = limits::kDecodeAheadBytes;
  int64_t upload_idle_timeout_ms = limits::kUploadIdleTimeoutMs;
  int64_t reader_stall_timeout_ms = limits::kReaderStallTimeoutMs;
  int64_t credit_wait_timeout_ms = limits::kCreditWaitTimeoutMs;
  int64_t drain_timeout_ms = limits::kDrainTimeoutMs;
  uint32_t learn_tokens = limits::kLearnTokens;
  uint64_t max_relearn_tokens = limits::kMaxRelearnTokens;
  int64_t tick_ms = 50;  // of the thread that looks at timeouts

  const Clock* clock = Clock::Real();
  FileSystem* file_system = FileSystem::Default();  // of disk_dir; replaced by tests
  // Called when an operator asks for a drain over the Admin service; must not block.
  std::function<void()> on_drain_requested;
};

// A unix socket and TCP port kDefaultPort on 127.0.0.1.
inline constexpr int kDefaultPort = 7447;
std::vector<std::string> DefaultListen();

// One address of --listen.
struct ListenAddress {
  bool is_unix = false;
  std::string path;  // of a unix socket
  std::string host;  // of TCP; without brackets
  int port = 0;      // 0: any free one
};

// INVALID_ARGUMENT with a sentence unless `text` is `unix:PATH` or `HOST:PORT` ([HOST]:PORT for
// IPv6).
absl::StatusOr<ListenAddress> ParseListenAddress(std::string_view text);
// `unix:PATH` or `HOST:PORT`.
std::string FormatListenAddress(const ListenAddress& address);
bool IsLoopback(const ListenAddress& address);

// INVALID_ARGUMENT with a sentence about the first thing that is wrong.
absl::Status ValidateConfig(const ServerConfig& config);

// Removes a socket file that nobody listens on. FAILED_PRECONDITION when somebody does or when the
// file is no socket; OK when there is none.
absl::Status RemoveStaleSocket(const std::string& path);

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_CONFIG_H_
