// How `latticekv bench service` measures: workers that repeat one operation for a while.
#ifndef LATTICEKV_CLIENT_CLI_SERVICE_BENCH_H_
#define LATTICEKV_CLIENT_CLI_SERVICE_BENCH_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cli/bench_echo.h"
#include "client/cli/child_process.h"
#include "latticekv/client.h"

namespace latticekv {

// What one line of the table is about.
struct BenchCase {
  std::string system;     // latticekv, echo, redis
  std::string transport;  // unix, tcp, shm
  std::string direction;  // put, get
  std::string wire;       // raw, frames (compressed on the worker); empty: not of this system
  PresetId preset = PresetId::kExact;
  uint32_t chunk_tokens = 0;
  uint32_t workers = 0;
};

struct BenchRow {
  BenchCase what;
  std::string note;              // why there is no measurement
  uint64_t operations = 0;       // done within `seconds`
  uint64_t operation_bytes = 0;  // raw bytes that one moves, whatever goes over the wire
  double seconds = 0;
  double p50_ms = 0, p99_ms = 0;
  double cpu_seconds = 0;        // of client and server; 0: the server is not ours to measure
  double codec_cpu_seconds = 0;  // of these, within the codec of the daemon

  double bytes() const {
    return static_cast<double>(operations) * static_cast<double>(operation_bytes);
  }
  double mb_per_s() const { return seconds > 0 ? bytes() / 1e6 / seconds : 0; }
  // What a core moves, compression apart: 10^6 raw bytes for each CPU second outside the codec.
  double transport_mb_per_cpu_s() const {
    const double cpu = cpu_seconds - codec_cpu_seconds;
    return cpu > 0 ? bytes() / 1e6 / cpu : 0;
  }
};

struct BenchSettings {
  Layout layout;
  uint32_t tokens = 0;  // of one operation
  double seconds = 1;   // of one row
  bool random_bytes = false;
  size_t memory_bytes = 0;  // of the daemon and of Redis
};

// One operation of one worker; the number tells it from the worker's others.
using BenchOperation = std::function<absl::Status(uint64_t number)>;

// The daemon under test.
struct BenchDaemon {
  std::unique_ptr<ChildProcess> process;  // null: --server was given
  std::string unix_address, tcp_address;  // empty: not served
  // The executable beside this one, serving on a socket in `folder` and on a free port.
  static absl::StatusOr<BenchDaemon> Start(const ScratchFolder& folder, size_t memory_bytes);
};

struct BenchRedis {
  std::unique_ptr<ChildProcess> process;
  std::string unix_address, tcp_address;
  // NOT_FOUND when redis-server is not installed.
  static absl::StatusOr<BenchRedis> Start(const ScratchFolder& folder, size_t memory_bytes);
};

class ServiceBench {
 public:
  static absl::StatusOr<std::unique_ptr<ServiceBench>> Create(BenchSettings settings,
                                                              const std::string& server);

  absl::StatusOr<BenchRow> Run(const BenchCase& what);
  const BenchSettings& settings() const { return settings_; }
  uint64_t operation_bytes() const { return settings_.layout.token_bytes() * settings_.tokens; }

 private:
  explicit ServiceBench(BenchSettings settings) : settings_(std::move(settings)) {}
  absl::StatusOr<BenchOperation> MakeOperation(const BenchCase& what, uint32_t worker);
  absl::StatusOr<BenchOperation> MakePut(const BenchCase& what, uint32_t worker);
  absl::StatusOr<BenchOperation> MakeGet(const BenchCase& what, uint32_t worker);
  absl::StatusOr<BenchOperation> MakeEcho(const BenchCase& what);
  absl::StatusOr<BenchOperation> MakeRedis(const BenchCase& what, uint32_t worker);
  absl::StatusOr<Client> ConnectTo(const BenchCase& what);
  absl::StatusOr<RegisteredLayout> RegisterFor(Client& client, const BenchCase& what);
  std::vector<uint32_t> Tokens(uint32_t worker, uint64_t number) const;
  // Sizes of the messages that one operation takes.
  std::vector<size_t> MessageSizes(uint32_t chunk_tokens) const;
  // CPU time of the server of `what` when it is another process, and of its codec.
  struct ServerTimes {
    double cpu_seconds = 0, codec_seconds = 0;
  };
  absl::StatusOr<ServerTimes> TimesOf(const BenchCase& what);

  const BenchSettings settings_;
  ByteVector payload_;  // raw planes of one operation
  std::vector<std::vector<PlaneView>> views_;
  std::unique_ptr<ScratchFolder> folder_;
  BenchDaemon daemon_;
  BenchRedis redis_;
  bool redis_missing_ = false;
  std::unique_ptr<EchoServer> echo_unix_, echo_tcp_;
  uint32_t runs_ = 0;  // makes tokens of one row differ from those of others
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_CLI_SERVICE_BENCH_H_
