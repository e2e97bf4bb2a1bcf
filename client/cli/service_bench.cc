#include "client/cli/service_bench.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cli/redis_client.h"
#include "client/cli/synthetic_cache.h"
#include "core/base/mutex.h"
#include "core/base/status_macros.h"

namespace latticekv {
namespace {

using SteadyClock = std::chrono::steady_clock;
constexpr auto kStartTimeout = std::chrono::seconds(10);
constexpr uint32_t kPayloadSeed = 20240607;
constexpr uint64_t kRegionsBytes = uint64_t{16} << 30;

double SecondsSince(SteadyClock::time_point start) {
  return std::chrono::duration<double>(SteadyClock::now() - start).count();
}

// Waits until `ready()`; UNAVAILABLE when the process ends or takes too long.
template <typename Ready>
absl::Status WaitFor(ChildProcess& process, const char* name, const Ready& ready) {
  const auto start = SteadyClock::now();
  while (!ready()) {
    if (!process.running()) return absl::UnavailableError(absl::StrCat(name, " ended at once"));
    if (SteadyClock::now() - start > kStartTimeout) {
      return absl::UnavailableError(absl::StrCat(name, " did not start within 10 s"));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return absl::OkStatus();
}

ByteVector MakePayload(const BenchSettings& settings) {
  if (!settings.random_bytes) return MakeSyntheticChunk(settings.layout, 0, settings.tokens);
  ByteVector out(settings.layout.token_bytes() * settings.tokens);
  std::mt19937_64 random(kPayloadSeed);
  for (size_t at = 0; at + 8 <= out.size(); at += 8) StoreLe<uint64_t>(out.data() + at, random());
  return out;
}

// The planes of a whole operation: per plane contiguous, any number of tokens.
std::vector<std::vector<PlaneView>> PayloadViews(const Layout& layout, uint32_t tokens,
                                                 const std::byte* at) {
  std::vector<std::vector<PlaneView>> out;
  for (const LayerSpec& layer : layout.layers) {
    auto& planes = out.emplace_back();
    for (const PlaneSpec& plane : layer.planes) {
      planes.push_back(ContiguousPlane(plane, at));
      at += plane.token_bytes() * tokens;
    }
  }
  return out;
}

// Writes a get into one buffer that it keeps.
class BufferSink : public GetSink {
 public:
  BufferSink(const Layout& layout, uint32_t tokens) : layout_(layout), tokens_(tokens) {
    buffer_.resize(layout.token_bytes() * tokens);
  }
  absl::Status OnBlock(const ServedBlock& block) override {
    if (!block.miss.ok()) return absl::DataLossError("bench: a block was evicted; raise --memory");
    starts_.resize(block.index + 1);
    starts_[block.index] = block.block.start_position;
    return absl::OkStatus();
  }
  absl::StatusOr<MutablePlaneView> Destination(uint32_t block, uint32_t layer,
                                               uint32_t plane) override {
    uint64_t offset = 0;
    for (uint32_t l = 0; l <= layer; ++l) {
      const auto& planes = layout_.layers[l].planes;
      for (uint32_t p = 0; p < (l < layer ? planes.size() : plane); ++p) {
        offset += planes[p].token_bytes() * tokens_;
      }
    }
    const PlaneSpec& spec = layout_.layers[layer].planes[plane];
    return ContiguousPlane(spec, buffer_.data() + offset + starts_[block] * spec.token_bytes());
  }
  absl::Status OnLayer(uint32_t) override { return absl::OkStatus(); }
  absl::Status OnBlockFailed(uint32_t, const absl::Status& why) override { return why; }
  absl::Status OnRestart() override { return absl::OkStatus(); }

 private:
  const Layout& layout_;
  const uint32_t tokens_;
  ByteVector buffer_;
  std::vector<uint64_t> starts_;
};

double Percentile(std::vector<double>& sorted, double part) {
  if (sorted.empty()) return 0;
  const auto rank = static_cast<size_t>(std::ceil(part * static_cast<double>(sorted.size())));
  return sorted[std::clamp<size_t>(rank, 1, sorted.size()) - 1];
}

}  // namespace

absl::StatusOr<BenchDaemon> BenchDaemon::Start(const ScratchFolder& folder, size_t memory_bytes) {
  std::error_code failed;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", failed);
  const std::string program = (self.parent_path() / "latticekvd").string();
  const std::string port_file = folder.File("ports");
  BenchDaemon out;
  LKV_ASSIGN_OR_RETURN(
      out.process,
      ChildProcess::Start(
          program,
          {absl::StrCat("--listen=unix:", folder.File("latticekvd.sock"), ",127.0.0.1:0"),
           absl::StrCat("--memory_bytes=", memory_bytes), absl::StrCat("--port_file=", port_file),
           // What it takes depends on which tokens come when: it would be some rows' and not
           // others'.
           "--learn_profiles=false",
           // Enough for all workers.
           absl::StrCat("--shared_memory_bytes=", kRegionsBytes)},
          folder.File("latticekvd.log")));
  LKV_RETURN_IF_ERROR(WaitFor(*out.process, "latticekvd",
                              [&] { return std::filesystem::exists(port_file, failed); }));
  std::ifstream ports(port_file);
  std::getline(ports, out.unix_address);
  std::getline(ports, out.tcp_address);
  return out;
}

absl::StatusOr<BenchRedis> BenchRedis::Start(const ScratchFolder& folder, size_t memory_bytes) {
  // Redis takes no port 0 for "any": one that was free a moment ago.
  LKV_ASSIGN_OR_RETURN(auto probe, EchoServer::Start("127.0.0.1:0"));
  const std::string port = probe->address().substr(probe->address().rfind(':') + 1);
  probe.reset();
  BenchRedis out;
  out.unix_address = absl::StrCat("unix:", folder.File("redis.sock"));
  out.tcp_address = absl::StrCat("127.0.0.1:", port);
  LKV_ASSIGN_OR_RETURN(
      out.process, ChildProcess::Start("redis-server",
                                       {"--port", port, "--bind", "127.0.0.1", "--unixsocket",
                                        folder.File("redis.sock"), "--save", "", "--appendonly",
                                        "no", "--maxmemory", absl::StrCat(memory_bytes),
                                        "--maxmemory-policy", "allkeys-lru", "--daemonize", "no"},
                                       folder.File("redis.log")));
  LKV_RETURN_IF_ERROR(WaitFor(*out.process, "redis-server",
                              [&] { return RedisClient::Connect(out.unix_address).ok(); }));
  return out;
}

absl::StatusOr<std::unique_ptr<ServiceBench>> ServiceBench::Create(BenchSettings settings,
                                                                   const std::string& server) {
  auto bench = std::unique_ptr<ServiceBench>(new ServiceBench(std::move(settings)));
  bench->payload_ = MakePayload(bench->settings_);
  bench->views_ =
      PayloadViews(bench->settings_.layout, bench->settings_.tokens, bench->payload_.data());
  LKV_ASSIGN_OR_RETURN(bench->folder_, ScratchFolder::Make());
  if (server.empty()) {
    LKV_ASSIGN_OR_RETURN(bench->daemon_,
                         BenchDaemon::Start(*bench->folder_, bench->settings_.memory_bytes));
  } else {
    (server.starts_with("unix:") ? bench->daemon_.unix_address : bench->daemon_.tcp_address) =
        server;
  }
  auto redis = BenchRedis::Start(*bench->folder_, bench->settings_.memory_bytes);
  bench->redis_missing_ = absl::IsNotFound(redis.status());
  if (!redis.ok() && !bench->redis_missing_) return redis.status();
  if (redis.ok()) bench->redis_ = *std::move(redis);
  LKV_ASSIGN_OR_RETURN(bench->echo_unix_,
                       EchoServer::Start(absl::StrCat("unix:", bench->folder_->File("echo.sock"))));
  LKV_ASSIGN_OR_RETURN(bench->echo_tcp_, EchoServer::Start("127.0.0.1:0"));
  return bench;
}

std::vector<uint32_t> ServiceBench::Tokens(uint32_t worker, uint64_t number) const {
  std::vector<uint32_t> out(settings_.tokens, 7);
  out[0] = runs_;
  out[1] = worker;
  out[2] = static_cast<uint32_t>(number);
  return out;
}

std::vector<size_t> ServiceBench::MessageSizes(uint32_t chunk_tokens) const {
  std::vector<size_t> out;
  for (uint32_t at = 0; at < settings_.tokens; at += chunk_tokens) {
    const uint32_t tokens = std::min(chunk_tokens, settings_.tokens - at);
    for (size_t left = settings_.layout.token_bytes() * tokens; left > 0;) {
      out.push_back(std::min(left, limits::kMaxPartBytes));
      left -= out.back();
    }
  }
  return out;
}

absl::StatusOr<Client> ServiceBench::ConnectTo(const BenchCase& what) {
  ClientOptions options;
  if (what.transport != "shm") options.shared_memory_bytes = 0;
  const std::string& address = what.transport == "tcp" ? daemon_.tcp_address : daemon_.unix_address;
  return Connect(address, options);
}

absl::StatusOr<RegisteredLayout> ServiceBench::RegisterFor(Client& client, const BenchCase& what) {
  return client.RegisterLayout({.name_space = absl::StrCat("bench", what.chunk_tokens),
                                .layout = settings_.layout,
                                .chunk_tokens = what.chunk_tokens});
}

absl::StatusOr<BenchOperation> ServiceBench::MakePut(const BenchCase& what, uint32_t worker) {
  LKV_ASSIGN_OR_RETURN(const Client connected, ConnectTo(what));
  auto client = std::make_shared<Client>(connected);
  LKV_ASSIGN_OR_RETURN(const RegisteredLayout layout, RegisterFor(*client, what));
  const bool frames = what.wire == "frames";
  return [this, client, layout, worker, preset = what.preset,
          frames](uint64_t number) -> absl::Status {
    const std::vector<uint32_t> tokens = Tokens(worker, number);
    PutRequest request;
    request.layout = layout;
    request.tokens = tokens;
    request.planes = views_;
    request.preset = preset;
    request.compress_on_worker = frames;
    LKV_ASSIGN_OR_RETURN(const PutResult result, client->PutPrefix(request));
    LKV_RETURN_IF_ERROR(result.status());
    if (result.blocks[0].have_it) return absl::InternalError("bench: a block was stored already");
    return absl::OkStatus();
  };
}

absl::StatusOr<BenchOperation> ServiceBench::MakeGet(const BenchCase& what, uint32_t worker) {
  LKV_ASSIGN_OR_RETURN(const Client connected, ConnectTo(what));
  auto client = std::make_shared<Client>(connected);
  GetRequest request;
  LKV_ASSIGN_OR_RETURN(request.layout, RegisterFor(*client, what));
  const std::vector<uint32_t> tokens = Tokens(worker, 0);
  PutRequest put;
  put.layout = request.layout;
  put.tokens = tokens;
  put.planes = views_;
  put.preset = what.preset;
  LKV_ASSIGN_OR_RETURN(const PutResult stored, client->PutPrefix(put));
  LKV_RETURN_IF_ERROR(stored.status());
  for (const BlockResult& block : stored.blocks) {
    request.content_hashes.push_back(block.content_hash);
  }
  request.decode_on_worker = what.wire == "frames";
  auto sink = std::make_shared<BufferSink>(settings_.layout, settings_.tokens);
  return [client, request, sink](uint64_t) { return client->Get(request, *sink); };
}

absl::StatusOr<BenchOperation> ServiceBench::MakeEcho(const BenchCase& what) {
  const EchoServer& server = what.transport == "tcp" ? *echo_tcp_ : *echo_unix_;
  std::shared_ptr<EchoClient> client = EchoClient::Connect(server.address());
  const bool put = what.direction == "put";
  return [client, put, sizes = MessageSizes(what.chunk_tokens)](uint64_t) {
    return put ? client->Upload(sizes) : client->Download(sizes);
  };
}

absl::StatusOr<BenchOperation> ServiceBench::MakeRedis(const BenchCase& what, uint32_t worker) {
  LKV_ASSIGN_OR_RETURN(
      std::shared_ptr<RedisClient> client,
      RedisClient::Connect(what.transport == "tcp" ? redis_.tcp_address : redis_.unix_address));
  std::vector<std::string_view> values;  // one for each chunk
  const size_t token_bytes = settings_.layout.token_bytes();
  for (uint32_t at = 0; at < settings_.tokens; at += what.chunk_tokens) {
    const uint32_t tokens = std::min(what.chunk_tokens, settings_.tokens - at);
    values.push_back(AsText(payload_).substr(at * token_bytes, tokens * token_bytes));
  }
  const std::string prefix = absl::StrCat(runs_, ":", worker, ":");
  const auto set = [client, values, prefix](uint64_t number) {
    for (size_t i = 0; i < values.size(); ++i) {
      LKV_RETURN_IF_ERROR(client->Set(absl::StrCat(prefix, number, ":", i), values[i]));
    }
    return absl::OkStatus();
  };
  if (what.direction == "put") return set;
  LKV_RETURN_IF_ERROR(set(0));
  auto value = std::make_shared<std::string>();
  return [client, prefix, value, count = values.size()](uint64_t) {
    for (size_t i = 0; i < count; ++i) {
      LKV_RETURN_IF_ERROR(client->Get(absl::StrCat(prefix, 0, ":", i), *value));
    }
    return absl::OkStatus();
  };
}

absl::StatusOr<BenchOperation> ServiceBench::MakeOperation(const BenchCase& what, uint32_t worker) {
  if (what.system == "echo") return MakeEcho(what);
  if (what.system == "redis") return MakeRedis(what, worker);
  return what.direction == "put" ? MakePut(what, worker) : MakeGet(what, worker);
}

absl::StatusOr<ServiceBench::ServerTimes> ServiceBench::TimesOf(const BenchCase& what) {
  ServerTimes out;
  if (what.system == "redis") out.cpu_seconds = CpuSecondsOf(redis_.process->pid());
  if (what.system != "latticekv" || !daemon_.process) return out;
  LKV_ASSIGN_OR_RETURN(Client client, ConnectTo(what));
  LKV_ASSIGN_OR_RETURN(const ServerStats stats, client.Stats());
  out.cpu_seconds = CpuSecondsOf(daemon_.process->pid());
  if (stats.encode_gbps > 0) {
    out.codec_seconds += static_cast<double>(stats.encode_bytes) / 1e9 / stats.encode_gbps;
  }
  if (stats.decode_gbps > 0) {
    out.codec_seconds += static_cast<double>(stats.decode_bytes) / 1e9 / stats.decode_gbps;
  }
  return out;
}

absl::StatusOr<BenchRow> ServiceBench::Run(const BenchCase& what) {
  BenchRow row;
  row.what = what;
  row.operation_bytes = operation_bytes();
  if (what.system == "redis" && redis_missing_) {
    row.note = "redis-server is not installed";
    return row;
  }
  if (what.system == "latticekv" &&
      (what.transport == "tcp" ? daemon_.tcp_address : daemon_.unix_address).empty()) {
    row.note = "--server is not reached this way";
    return row;
  }
  ++runs_;
  std::vector<BenchOperation> operations;
  for (uint32_t w = 0; w < what.workers; ++w) {
    LKV_ASSIGN_OR_RETURN(BenchOperation operation, MakeOperation(what, w));
    // The first one connects and fills caches.
    LKV_RETURN_IF_ERROR(operation(0));
    operations.push_back(std::move(operation));
  }
  LKV_ASSIGN_OR_RETURN(const ServerTimes before, TimesOf(what));
  const double own_before = OwnCpuSeconds();
  const auto start = SteadyClock::now();

  Mutex mutex;
  std::vector<double> latencies_ms;
  absl::Status error;
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (const BenchOperation& operation : operations) {
    threads.emplace_back([&] {
      std::vector<double> own;
      absl::Status status;
      for (uint64_t number = 1; !stop && status.ok(); ++number) {
        const auto began = SteadyClock::now();
        status = operation(number);
        own.push_back(SecondsSince(began) * 1e3);
        if (SecondsSince(start) >= settings_.seconds) break;
      }
      MutexLock lock(mutex);
      latencies_ms.insert(latencies_ms.end(), own.begin(), own.end());
      if (!status.ok()) {
        stop = true;
        error = status;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  row.seconds = SecondsSince(start);
  LKV_RETURN_IF_ERROR(error);
  const double own = OwnCpuSeconds() - own_before;
  LKV_ASSIGN_OR_RETURN(const ServerTimes after, TimesOf(what));
  row.operations = latencies_ms.size();
  std::sort(latencies_ms.begin(), latencies_ms.end());
  row.p50_ms = Percentile(latencies_ms, 0.50);
  row.p99_ms = Percentile(latencies_ms, 0.99);
  if (what.system != "latticekv" || daemon_.process) {
    row.cpu_seconds = own + after.cpu_seconds - before.cpu_seconds;
    row.codec_cpu_seconds = after.codec_seconds - before.codec_seconds;
  }
  return row;
}

}  // namespace latticekv
