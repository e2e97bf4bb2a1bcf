#include "client/cli/disk_bench.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <random>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cli/child_process.h"
#include "core/base/status_macros.h"
#include "core/layout/layout.h"
#include "latticekv/client.h"

namespace latticekv {
namespace {

using SteadyClock = std::chrono::steady_clock;
constexpr uint64_t kAlignment = 4096;
constexpr size_t kRecordBytes = 1 << 20;
constexpr uint32_t kChunkTokens = 256;
constexpr uint32_t kSessionBlocks = 32;
constexpr uint32_t kSessionTokens = kSessionBlocks * kChunkTokens;
constexpr size_t kDaemonMemoryBytes = size_t{512} << 20;
// That stay in memory while others of them are read.
constexpr uint32_t kMemorySessions = kDaemonMemoryBytes / 2 / (kSessionBlocks * kRecordBytes);
constexpr uint32_t kFillingSessions = kDaemonMemoryBytes / (kSessionBlocks * kRecordBytes);
constexpr int kRawReads[] = {1, 4, 8};
constexpr auto kStartTimeout = std::chrono::seconds(60);

// 4 KiB a token, so that a chunk of 256 is a record of 1 MiB.
Layout BenchLayout() {
  return MakeUniformLayout("disk bench", 8, 2, 64, DType::kF16, {RopeStyle::kNeox, 64, 10000.0});
}

absl::Status FailedTo(const std::string& what) {
  return absl::UnavailableError(
      absl::StrCat("bench: cannot ", what, ": ", std::generic_category().message(errno)));
}

struct Measured {
  double seconds = 0, cpu_seconds = 0;
  uint64_t bytes = 0, disk_bytes = 0;  // served; read from the disk for it by the other process
  Measured& operator+=(const Measured& other) {
    seconds += other.seconds;
    cpu_seconds += other.cpu_seconds;
    bytes += other.bytes;
    disk_bytes += other.disk_bytes;
    return *this;
  }
};

// Starts at construction.
class Stopwatch {
 public:
  explicit Stopwatch(pid_t other = 0)
      : other_(other), cpu_(Cpu()), disk_bytes_(DiskBytes()), start_(SteadyClock::now()) {}
  Measured Stop(uint64_t bytes) const {
    return {std::chrono::duration<double>(SteadyClock::now() - start_).count(), Cpu() - cpu_, bytes,
            DiskBytes() - disk_bytes_};
  }

 private:
  double Cpu() const { return OwnCpuSeconds() + (other_ != 0 ? CpuSecondsOf(other_) : 0); }
  uint64_t DiskBytes() const { return other_ != 0 ? DiskBytesReadBy(other_) : 0; }
  const pid_t other_;
  const double cpu_;
  const uint64_t disk_bytes_;
  const SteadyClock::time_point start_;
};

// Runs `work(worker)` on as many threads; the first error.
absl::Status InParallel(uint32_t count, const std::function<absl::Status(uint32_t)>& work) {
  std::vector<absl::Status> results(count);
  std::vector<std::thread> threads;
  for (uint32_t w = 0; w < count; ++w) {
    threads.emplace_back([&, w] { results[w] = work(w); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& result : results) LKV_RETURN_IF_ERROR(result);
  return absl::OkStatus();
}

// A session in one buffer, and a look at what came.
class SessionSink : public GetSink {
 public:
  SessionSink(const Layout& layout, const ByteVector& expected)
      : layout_(layout), expected_(expected), buffer_(expected.size()) {}
  absl::Status OnBlock(const ServedBlock& block) override { return block.miss; }
  absl::StatusOr<MutablePlaneView> Destination(uint32_t block, uint32_t layer,
                                               uint32_t plane) override {
    const PlaneSpec& spec = layout_.layers[layer].planes[plane];
    return ContiguousPlane(spec, buffer_.data() + Offset(block, layer, plane));
  }
  absl::Status OnLayer(uint32_t) override { return absl::OkStatus(); }
  absl::Status OnBlockFailed(uint32_t, const absl::Status& why) override { return why; }
  absl::Status OnRestart() override { return absl::OkStatus(); }
  // Not every byte: comparing all would be measured with the rest.
  absl::Status Compare() {
    for (size_t at = 0; at + 64 <= buffer_.size(); at += 64 << 10) {
      if (std::memcmp(&buffer_[at], &expected_[at], 64) != 0) {
        return absl::DataLossError("bench: a block came back with other bytes");
      }
    }
    return absl::OkStatus();
  }

 private:
  // Of a plane of the whole session, block behind block.
  size_t Offset(uint32_t block, uint32_t layer, uint32_t plane) const {
    size_t planes = 0;
    for (uint32_t l = 0; l < layer; ++l) planes += layout_.layers[l].planes.size();
    const size_t plane_bytes = layout_.layers[layer].planes[plane].token_bytes() * kSessionTokens;
    return (planes + plane) * plane_bytes + block * (plane_bytes / kSessionBlocks);
  }
  const Layout& layout_;
  const ByteVector& expected_;
  ByteVector buffer_;
};

class DiskBench {
 public:
  explicit DiskBench(const DiskBenchSettings& settings)
      : settings_(settings), layout_(BenchLayout()) {}
  ~DiskBench() {
    daemon_.reset();
    std::error_code ignored;
    if (!folder_.empty()) std::filesystem::remove_all(folder_, ignored);
  }

  absl::Status Fill() {
    std::string name = settings_.directory + "/latticekv-bench-XXXXXX";
    if (mkdtemp(name.data()) == nullptr) return FailedTo("make a folder in " + settings_.directory);
    folder_ = name;
    sessions_ = static_cast<uint32_t>(
        std::max<uint64_t>(1, settings_.bytes / (uint64_t{kRecordBytes} * kSessionBlocks)));
    payload_.resize(layout_.token_bytes() * kSessionTokens);
    std::mt19937_64 random(20240607);
    for (size_t at = 0; at + 8 <= payload_.size(); at += 8) {
      StoreLe<uint64_t>(payload_.data() + at, random());
    }
    LKV_RETURN_IF_ERROR(StartDaemon());
    LKV_ASSIGN_OR_RETURN(Client client, Connect(address_, {}));
    LKV_ASSIGN_OR_RETURN(const RegisteredLayout layout, Register(client));
    for (uint32_t s = 0; s < sessions_; ++s) {
      std::vector<uint32_t> tokens(kSessionTokens, 7);
      tokens[0] = s;
      PutRequest put;
      put.layout = layout;
      put.session = absl::StrCat(s);
      put.tokens = tokens;
      put.preset = PresetId::kExact;
      const std::byte* at = payload_.data();
      for (const LayerSpec& layer : layout_.layers) {
        auto& planes = put.planes.emplace_back();
        for (const PlaneSpec& plane : layer.planes) {
          planes.push_back(ContiguousPlane(plane, at));
          at += plane.token_bytes() * kSessionTokens;
        }
      }
      LKV_ASSIGN_OR_RETURN(const PutResult stored, client.PutPrefix(put));
      LKV_RETURN_IF_ERROR(stored.status());
    }
    return client.Flush();
  }

  absl::StatusOr<std::vector<DiskBenchRow>> Round(uint32_t round) {
    std::vector<DiskBenchRow> rows;
    std::vector<double> fastest;  // of each group of raw reads
    std::vector<size_t> groups;   // of each row: raw reads before it
    const auto add = [&](std::string what, bool raw, const Measured& m) {
      DiskBenchRow row;
      row.round = round;
      row.what = std::move(what);
      row.raw = raw;
      row.read_share = static_cast<double>(m.disk_bytes) / static_cast<double>(m.bytes);
      row.mb_per_s = static_cast<double>(m.bytes) / 1e6 / m.seconds;
      row.cpu_s_per_gb = m.cpu_seconds / (static_cast<double>(m.bytes) / 1e9);
      if (raw) fastest.back() = std::max(fastest.back(), row.mb_per_s);
      groups.push_back(fastest.size());
      rows.push_back(std::move(row));
    };
    const auto add_raw = [&]() -> absl::Status {
      daemon_.reset();
      fastest.push_back(0);
      for (const int threads : kRawReads) {
        LKV_ASSIGN_OR_RETURN(const Measured m, ReadRaw(threads));
        add(absl::StrCat("raw reads, ", threads, " at a time"), true, m);
      }
      return absl::OkStatus();
    };
    LKV_RETURN_IF_ERROR(add_raw());
    for (const uint32_t workers : settings_.workers) {
      for (const bool unordered_layers : {false, true}) {
        if (unordered_layers) LKV_RETURN_IF_ERROR(add_raw());
        const std::string what = absl::StrCat("service, disk, ", workers, " workers",
                                              unordered_layers ? ", unordered layers" : "");
        LKV_ASSIGN_OR_RETURN(const auto parts, GetAll(workers, unordered_layers));
        Measured all;
        for (const Measured& part : parts) all += part;
        add(what, false, all);
        if (parts.size() > 1) add(what + ", with its memory full", false, parts.back());
      }
      LKV_ASSIGN_OR_RETURN(const Measured memory, GetFromMemory(workers));
      add(absl::StrCat("service, memory, ", workers, " workers"), false, memory);
      LKV_RETURN_IF_ERROR(add_raw());
    }
    for (size_t i = 0; i < rows.size(); ++i) {
      DiskBenchRow& row = rows[i];
      row.share_of_fastest = row.mb_per_s / *std::max_element(fastest.begin(), fastest.end());
      if (row.raw) continue;
      row.share_of_raw = row.mb_per_s / ((fastest[groups[i] - 1] + fastest[groups[i]]) / 2);
    }
    return rows;
  }

 private:
  std::string disk_dir() const { return folder_ + "/disk"; }

  absl::Status StartDaemon() {
    daemon_.reset();
    std::error_code failed;
    const auto self = std::filesystem::read_symlink("/proc/self/exe", failed);
    const std::string port_file = folder_ + "/ports";
    std::filesystem::remove(port_file, failed);
    address_ = absl::StrCat("unix:", folder_, "/latticekvd.sock");
    const uint64_t disk_bytes = settings_.bytes + settings_.bytes / 4 + (uint64_t{2} << 30);
    LKV_ASSIGN_OR_RETURN(daemon_,
                         ChildProcess::Start((self.parent_path() / "latticekvd").string(),
                                             {absl::StrCat("--listen=", address_),
                                              absl::StrCat("--memory_bytes=", kDaemonMemoryBytes),
                                              absl::StrCat("--disk_dir=", disk_dir()),
                                              absl::StrCat("--disk_bytes=", disk_bytes),
                                              absl::StrCat("--port_file=", port_file)},
                                             folder_ + "/latticekvd.log"));
    const auto start = SteadyClock::now();
    while (!std::filesystem::exists(port_file, failed)) {
      if (!daemon_->running() || SteadyClock::now() - start > kStartTimeout) {
        return absl::UnavailableError("bench: latticekvd did not start on " + disk_dir());
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<RegisteredLayout> Register(Client& client) {
    return client.RegisterLayout({.layout = layout_, .chunk_tokens = kChunkTokens});
  }

  absl::StatusOr<std::vector<std::string>> SegmentFiles() const {
    std::vector<std::string> out;
    std::error_code failed;
    for (const auto& entry : std::filesystem::directory_iterator(disk_dir(), failed)) {
      if (entry.path().extension() == ".lks") out.push_back(entry.path());
    }
    if (out.empty()) return absl::NotFoundError("bench: there are no segments in " + disk_dir());
    std::sort(out.begin(), out.end());
    return out;
  }

  absl::Status DropCaches() const {
    LKV_ASSIGN_OR_RETURN(const std::vector<std::string> files, SegmentFiles());
    for (const std::string& file : files) {
      const int fd = open(file.c_str(), O_RDONLY | O_CLOEXEC);
      if (fd < 0) return FailedTo("open " + file);
      const bool dropped = fsync(fd) == 0 && posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0;
      close(fd);
      if (!dropped) return FailedTo("drop the cache of " + file);
    }
    return absl::OkStatus();
  }

  // Pieces of a record's size of all segments, past the page cache.
  absl::StatusOr<Measured> ReadRaw(int threads) const {
    LKV_ASSIGN_OR_RETURN(const std::vector<std::string> files, SegmentFiles());
    std::vector<std::pair<const std::string*, uint64_t>> pieces;
    for (const std::string& file : files) {
      std::error_code failed;
      const uint64_t size = std::filesystem::file_size(file, failed);
      for (uint64_t at = 0; !failed && at + kRecordBytes <= size; at += kRecordBytes) {
        pieces.emplace_back(&file, at);
      }
    }
    std::atomic<size_t> next{0};
    const Stopwatch watch;
    LKV_RETURN_IF_ERROR(InParallel(static_cast<uint32_t>(threads), [&](uint32_t) -> absl::Status {
      const std::unique_ptr<void, decltype(&free)> buffer(aligned_alloc(kAlignment, kRecordBytes),
                                                          &free);
      const std::string* open_file = nullptr;
      int fd = -1;
      absl::Status status;
      for (size_t i = next++; i < pieces.size() && status.ok(); i = next++) {
        const auto& [file, at] = pieces[i];
        if (file != open_file) {
          if (fd >= 0) close(fd);
          fd = open(file->c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
          open_file = file;
        }
        if (pread(fd, buffer.get(), kRecordBytes, static_cast<off_t>(at)) !=
            static_cast<ssize_t>(kRecordBytes)) {
          status = FailedTo("read " + *file + " with O_DIRECT");
        }
      }
      if (fd >= 0) close(fd);
      return status;
    }));
    return watch.Stop(pieces.size() * kRecordBytes);
  }

  absl::Status GetSession(Client& client, const RegisteredLayout& layout, uint32_t session,
                          bool unordered_layers, SessionSink& sink) const {
    GetRequest get;
    get.layout = layout;
    get.session = absl::StrCat(session);
    get.unordered_layers = unordered_layers;
    LKV_RETURN_IF_ERROR(client.Get(get, sink));
    return sink.Compare();
  }

  // Every session once, none of it in memory before: those that fill the memory of a daemon that
  // has just begun, for which the kernel makes pages, and the rest.
  absl::StatusOr<std::vector<Measured>> GetAll(uint32_t workers, bool unordered_layers) {
    daemon_.reset();
    LKV_RETURN_IF_ERROR(DropCaches());
    LKV_RETURN_IF_ERROR(StartDaemon());
    return Get(workers, {std::min(sessions_, kFillingSessions), sessions_}, unordered_layers,
               [](uint32_t n) { return n; });
  }

  // A session for each worker, time and again, as far as they fit into memory together.
  absl::StatusOr<Measured> GetFromMemory(uint32_t workers) {
    const uint32_t sessions = std::min({workers, sessions_, kMemorySessions});
    const auto session_of = [&](uint32_t n) { return n % sessions; };
    LKV_RETURN_IF_ERROR(Get(workers, {2 * workers}, false, session_of).status());
    LKV_ASSIGN_OR_RETURN(const auto parts, Get(workers, {sessions_}, false, session_of));
    return parts.back();
  }

  // Gets up to the first of `ends`, from there to the second, and so on; one after the other.
  absl::StatusOr<std::vector<Measured>> Get(
      uint32_t workers, const std::vector<uint32_t>& ends, bool unordered_layers,
      const std::function<uint32_t(uint32_t)>& session_of) const {
    std::vector<Client> clients;
    std::vector<std::unique_ptr<SessionSink>> sinks;
    RegisteredLayout layout;
    for (uint32_t w = 0; w < workers; ++w) {
      LKV_ASSIGN_OR_RETURN(Client client, Connect(address_, {}));
      LKV_ASSIGN_OR_RETURN(
          layout, client.RegisterLayout({.layout = layout_, .chunk_tokens = kChunkTokens}));
      clients.push_back(std::move(client));
      sinks.push_back(std::make_unique<SessionSink>(layout_, payload_));
    }
    std::vector<Measured> parts;
    uint32_t begin = 0;
    for (const uint32_t end : ends) {
      if (begin == end) break;
      const Stopwatch watch(daemon_->pid());
      LKV_RETURN_IF_ERROR(InParallel(workers, [&](uint32_t w) -> absl::Status {
        for (uint32_t n = begin + w; n < end; n += workers) {
          LKV_RETURN_IF_ERROR(
              GetSession(clients[w], layout, session_of(n), unordered_layers, *sinks[w]));
        }
        return absl::OkStatus();
      }));
      parts.push_back(watch.Stop(uint64_t{end - begin} * payload_.size()));
      begin = end;
    }
    return parts;
  }

  const DiskBenchSettings settings_;
  const Layout layout_;
  std::string folder_, address_;
  uint32_t sessions_ = 0;
  ByteVector payload_;  // of a session: plane by plane
  std::unique_ptr<ChildProcess> daemon_;
};

}  // namespace

absl::StatusOr<std::vector<DiskBenchRow>> RunDiskBench(const DiskBenchSettings& settings) {
  DiskBench bench(settings);
  LKV_RETURN_IF_ERROR(bench.Fill());
  std::vector<DiskBenchRow> rows;
  for (uint32_t round = 1; round <= settings.rounds; ++round) {
    LKV_ASSIGN_OR_RETURN(std::vector<DiskBenchRow> more, bench.Round(round));
    rows.insert(rows.end(), more.begin(), more.end());
  }
  return rows;
}

}  // namespace latticekv
