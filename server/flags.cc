#include "server/flags.h"

#include <algorithm>
#include <cstdint>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/flags/usage_config.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "core/base/status_macros.h"
#include "server/admin_views.h"

ABSL_FLAG(
    std::string, listen, "",
    "Addresses to serve on, separated by commas; each is unix:PATH or HOST:PORT, port 0 takes a "
    "free one. Default: a unix socket (latticekvd.sock in $XDG_RUNTIME_DIR, or /run for root) "
    "and 127.0.0.1:7447.");
ABSL_FLAG(uint64_t, memory_bytes, uint64_t{1} << 30,
          "Hard cap on memory for stored blocks and for everything in flight.");
ABSL_FLAG(
    std::string, disk_dir, "",
    "Directory of the disk tier, made if it is missing; one daemon a directory. Default: none, "
    "blocks are kept in memory only.");
ABSL_FLAG(uint64_t, disk_bytes, 0,
          "Hard cap on the segments of blocks in --disk_dir; the journal comes on top.");
ABSL_FLAG(int, read_threads, latticekv::kDefaultReadThreads,
          "Reads from --disk_dir under way at once, beside those of descriptions.");
ABSL_FLAG(int, codec_threads, 0,
          "Threads that compress and decompress; 0: one per hardware thread.");
ABSL_FLAG(uint64_t, shared_memory_bytes, uint64_t{1} << 30,
          "Cap on the shared memory leased to clients on this host, beside --memory_bytes; 0: they "
          "send everything over their sockets.");
ABSL_FLAG(std::string, gpu, "auto",
          "The GPU that compresses and decompresses: auto takes the first if there is one with "
          "enough free memory, off takes none, a number that device or the daemon does not start.");
ABSL_FLAG(uint64_t, gpu_memory_bytes, uint64_t{1536} << 20,
          "Working memory on the GPU, taken at the start.");
ABSL_FLAG(
    int, gpu_sm_percent, 100,
    "Share of the GPU's multiprocessors that the daemon's kernels may run on (a green context "
    "of the driver); the rest is the engine's.");
ABSL_FLAG(bool, learn_profiles, true,
          "Learn channel means and spreads of layouts that have no profile with them, from the "
          "first tokens stored, and code with them.");
ABSL_FLAG(bool, insecure, false,
          "Allow addresses that other hosts can reach, without encryption or identity.");
ABSL_FLAG(std::string, port_file, "",
          "File to write the bound addresses to, one per line, once the daemon serves.");
ABSL_FLAG(std::string, default_preset, "high",
          "Preset of uploads that name none: exact, near, fine, high, balanced, small or tiny.");
ABSL_FLAG(std::string, log_level, "info", "trace, debug, info, warn, error or off.");

namespace latticekv {
namespace {

std::string VersionLine() {
  return absl::StrCat("latticekvd ", std::string(ServerVersion()), "\n");
}

// Flags of this file are the ones to show for --help; absl's own are behind --helpfull.
bool IsOurs(absl::string_view file) { return absl::EndsWith(file, "server/flags.cc"); }

absl::StatusOr<GpuConfig> GpuFlags() {
  GpuConfig gpu;
  gpu.options.memory_bytes = absl::GetFlag(FLAGS_gpu_memory_bytes);
  gpu.options.sm_percent = absl::GetFlag(FLAGS_gpu_sm_percent);
  const std::string use = absl::GetFlag(FLAGS_gpu);
  if (use == "auto") {
    gpu.use = GpuConfig::Use::kAuto;
  } else if (use != "off") {
    gpu.use = GpuConfig::Use::kDevice;
    if (!absl::SimpleAtoi(use, &gpu.options.device) || gpu.options.device < 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--gpu is '", use, "'; use auto, off or the number of a CUDA device, from 0"));
    }
  }
  return gpu;
}

}  // namespace

absl::StatusOr<DaemonFlags> ParseFlags(int argc, char** argv) {
  absl::SetProgramUsageMessage(
      "stores the KV caches of LLM inference, compressed, and serves them over gRPC.\n"
      "  latticekvd --listen=unix:/run/latticekvd.sock,127.0.0.1:7447 --memory_bytes=8589934592");
  absl::FlagsUsageConfig usage;
  usage.contains_helpshort_flags = IsOurs;
  usage.contains_help_flags = IsOurs;
  usage.version_string = VersionLine;
  absl::SetFlagsUsageConfig(usage);
  const std::vector<char*> rest = absl::ParseCommandLine(argc, argv);
  if (rest.size() > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("unexpected argument '", rest[1], "'; latticekvd takes only flags (--help)"));
  }
  DaemonFlags flags;
  const std::string listen = absl::GetFlag(FLAGS_listen);
  if (listen.empty()) {
    flags.server.listen = DefaultListen();
  } else {
    flags.server.listen = absl::StrSplit(listen, ',');
  }
  flags.server.insecure = absl::GetFlag(FLAGS_insecure);
  flags.server.memory_bytes = absl::GetFlag(FLAGS_memory_bytes);
  flags.server.disk_dir = absl::GetFlag(FLAGS_disk_dir);
  flags.server.disk_bytes = absl::GetFlag(FLAGS_disk_bytes);
  flags.server.shared_memory_bytes = absl::GetFlag(FLAGS_shared_memory_bytes);
  LKV_ASSIGN_OR_RETURN(flags.server.gpu, GpuFlags());
  flags.server.read_threads = absl::GetFlag(FLAGS_read_threads);
  flags.server.codec_threads = absl::GetFlag(FLAGS_codec_threads);
  flags.server.learn_profiles = absl::GetFlag(FLAGS_learn_profiles);
  LKV_ASSIGN_OR_RETURN(flags.server.default_preset,
                       ParsePreset(absl::GetFlag(FLAGS_default_preset)));
  flags.port_file = absl::GetFlag(FLAGS_port_file);
  flags.log_level = absl::GetFlag(FLAGS_log_level);
  constexpr std::string_view kLevels[] = {"trace", "debug", "info", "warn", "error", "off"};
  if (std::find(std::begin(kLevels), std::end(kLevels), flags.log_level) == std::end(kLevels)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "unknown --log_level '", flags.log_level, "'; use trace, debug, info, warn, error or off"));
  }
  LKV_RETURN_IF_ERROR(ValidateConfig(flags.server));
  return flags;
}

}  // namespace latticekv
