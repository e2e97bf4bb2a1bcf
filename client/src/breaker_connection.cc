#include "client/src/breaker_connection.h"

#include <algorithm>
#include <utility>

#include "core/base/limits.h"

namespace latticekv {
namespace {

absl::Status Away() {
  return absl::UnavailableError("the daemon is away; the cache is skipped until it answers again");
}

// What a put that is dropped says of its blocks. Their names are not worth hashing for.
PutResult Dropped(const PutRequest& request) {
  PutResult out;
  const uint64_t chunk = std::max(request.layout.chunk_tokens, 1u);
  for (uint64_t start = request.start; start < request.tokens.size(); start += chunk) {
    BlockResult& block = out.blocks.emplace_back();
    block.start_position = start;
    block.tokens = static_cast<uint32_t>(std::min(chunk, request.tokens.size() - start));
    block.status = Away();
  }
  return out;
}

absl::Status MissAll(const GetRequest& request, GetSink& sink) {
  // Of a session nobody can say how many blocks it has: one stands for all.
  const size_t count = std::max<size_t>(request.content_hashes.size(), 1);
  for (size_t i = 0; i < count; ++i) {
    ServedBlock block;
    block.index = static_cast<uint32_t>(i);
    if (i < request.content_hashes.size()) block.block.content_hash = request.content_hashes[i];
    block.miss = Away();
    if (absl::Status status = sink.OnBlock(block); !status.ok()) return status;
  }
  return absl::OkStatus();
}

// Knows which blocks of a get were promised, to take them back when it breaks.
class CountingSink : public GetSink {
 public:
  explicit CountingSink(GetSink& sink) : sink_(sink) {}
  absl::Status OnBlock(const ServedBlock& block) override {
    ++blocks_;
    if (block.miss.ok()) live_.push_back(block.index);
    return Note(sink_.OnBlock(block));
  }
  absl::StatusOr<MutablePlaneView> Destination(uint32_t block, uint32_t layer,
                                               uint32_t plane) override {
    auto view = sink_.Destination(block, layer, plane);
    Note(view.status()).IgnoreError();
    return view;
  }
  absl::Status OnLayer(uint32_t layer) override { return Note(sink_.OnLayer(layer)); }
  absl::Status OnBlockPlaced(uint32_t block) override {
    std::erase(live_, block);
    return Note(sink_.OnBlockPlaced(block));
  }
  absl::Status OnBlockFailed(uint32_t block, const absl::Status& why) override {
    std::erase(live_, block);
    return Note(sink_.OnBlockFailed(block, why));
  }
  absl::Status OnRestart() override {
    blocks_ = 0;
    live_.clear();
    return Note(sink_.OnRestart());
  }

  size_t blocks() const { return blocks_; }
  // The caller's own error: not the server's.
  const absl::Status& error() const { return error_; }
  absl::Status FailRest() {
    for (const uint32_t block : std::exchange(live_, {})) {
      if (absl::Status status = sink_.OnBlockFailed(block, Away()); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Note(absl::Status status) {
    if (error_.ok()) error_ = status;
    return status;
  }
  GetSink& sink_;
  size_t blocks_ = 0;
  std::vector<uint32_t> live_;
  absl::Status error_;
};

}  // namespace

BreakerConnection::BreakerConnection(std::shared_ptr<Connection> inner,
                                     std::function<absl::Status()> probe, int64_t probe_ms)
    : inner_(std::move(inner)),
      probe_(std::move(probe)),
      probe_ms_(std::max<int64_t>(probe_ms, 1)),
      thread_([this] { Watch(); }) {}

BreakerConnection::~BreakerConnection() {
  {
    MutexLock lock(mutex_);
    stop_ = true;
    changed_.SignalAll();
  }
  thread_.join();
}

void BreakerConnection::Watch() {
  while (true) {
    {
      MutexLock lock(mutex_);
      while (!stop_ && !open()) changed_.Wait(mutex_);
      if (!stop_) changed_.WaitFor(mutex_, probe_ms_);
      if (stop_) return;
    }
    if (probe_().ok()) open_.store(false, std::memory_order_release);
  }
}

bool BreakerConnection::Trip(const absl::Status& status) {
  if (!absl::IsUnavailable(status) && !absl::IsDeadlineExceeded(status)) return false;
  MutexLock lock(mutex_);
  open_.store(true, std::memory_order_release);
  changed_.SignalAll();
  return true;
}

template <typename Call>
auto BreakerConnection::Guard(const Call& call) -> decltype(call()) {
  if (open()) return Away();
  return call();
}

absl::StatusOr<RegisteredLayout> BreakerConnection::RegisterLayout(
    const RegisterLayoutRequest& request) {
  // Passed on even while open: it is remembered below, and registered when a put needs it.
  auto result = inner_->RegisterLayout(request);
  if (result.ok() || !Trip(result.status())) return result;
  RegisteredLayout out;
  out.layout = std::make_shared<const Layout>(request.layout);
  out.fingerprint = LayoutFingerprint(request.layout);
  out.name_space = request.name_space;
  if (request.chunk_tokens != 0) out.chunk_tokens = request.chunk_tokens;
  return out;
}

absl::StatusOr<std::shared_ptr<GpuCache>> BreakerConnection::OpenGpuCache(
    const GpuCacheSpec& spec) {
  auto cache = Guard([&] { return inner_->OpenGpuCache(spec); });
  Trip(cache.status());
  return cache;
}

absl::StatusOr<PutResult> BreakerConnection::PutPrefix(const PutRequest& request) {
  if (open()) return Dropped(request);
  auto result = inner_->PutPrefix(request);
  const bool own_timeout = request.timeout_ms > 0 && absl::IsDeadlineExceeded(result.status());
  if (result.ok() || own_timeout || !Trip(result.status())) return result;
  return Dropped(request);
}

absl::StatusOr<std::vector<PutResult>> BreakerConnection::PutBatch(
    const std::vector<PutRequest>& requests) {
  absl::StatusOr<std::vector<PutResult>> results = Away();
  if (!open()) {
    results = inner_->PutBatch(requests);
    const bool own_timeout = !requests.empty() && requests.front().timeout_ms > 0 &&
                             absl::IsDeadlineExceeded(results.status());
    if (results.ok() || own_timeout || !Trip(results.status())) return results;
  }
  std::vector<PutResult> dropped;
  for (const PutRequest& request : requests) dropped.push_back(Dropped(request));
  return dropped;
}

absl::StatusOr<LookupResult> BreakerConnection::Lookup(const LookupRequest& request) {
  LookupResult missed;
  if (!open()) {
    auto result = inner_->Lookup(request);
    if (result.ok() || !Trip(result.status())) return result;
  }
  missed.miss = Away();
  return missed;
}

absl::Status BreakerConnection::Get(const GetRequest& request, GetSink& sink) {
  if (open()) return MissAll(request, sink);
  CountingSink counting(sink);
  const absl::Status status = inner_->Get(request, counting);
  if (status.ok() || !counting.error().ok()) return status;
  if (request.timeout_ms > 0 && absl::IsDeadlineExceeded(status)) return status;
  if (!Trip(status)) return status;
  return counting.blocks() == 0 ? MissAll(request, sink) : counting.FailRest();
}

absl::StatusOr<SelectionResult> BreakerConnection::Touch(const BlockSelector& blocks,
                                                         int64_t ttl_ms) {
  return Guard([&] { return inner_->Touch(blocks, ttl_ms); });
}
absl::StatusOr<SelectionResult> BreakerConnection::Pin(const BlockSelector& blocks,
                                                       int64_t ttl_ms) {
  return Guard([&] { return inner_->Pin(blocks, ttl_ms); });
}
absl::StatusOr<SelectionResult> BreakerConnection::Unpin(const BlockSelector& blocks) {
  return Guard([&] { return inner_->Unpin(blocks); });
}
absl::StatusOr<SelectionResult> BreakerConnection::Delete(const BlockSelector& blocks) {
  return Guard([&] { return inner_->Delete(blocks); });
}
absl::StatusOr<SessionPage> BreakerConnection::ListSessions(const ListRequest& request) {
  return Guard([&] { return inner_->ListSessions(request); });
}
absl::StatusOr<SessionDetail> BreakerConnection::GetSession(const std::string& name_space,
                                                            const std::string& name) {
  return Guard([&] { return inner_->GetSession(name_space, name); });
}
absl::StatusOr<BlockPage> BreakerConnection::ListBlocks(const ListRequest& request) {
  return Guard([&] { return inner_->ListBlocks(request); });
}
absl::StatusOr<BlockDetail> BreakerConnection::GetBlock(const std::string& name_space,
                                                        const std::string& key) {
  return Guard([&] { return inner_->GetBlock(name_space, key); });
}
absl::StatusOr<ServerStats> BreakerConnection::Stats() {
  return Guard([&] { return inner_->Stats(); });
}
absl::StatusOr<MissExplanation> BreakerConnection::ExplainMiss(const std::string& name_space,
                                                               const std::string& key) {
  return Guard([&] { return inner_->ExplainMiss(name_space, key); });
}
absl::StatusOr<VerifyResult> BreakerConnection::Verify(
    const std::function<void(const VerifyResult&)>& progress) {
  return Guard([&] { return inner_->Verify(progress); });
}
absl::Status BreakerConnection::Flush() {
  return Guard([&] { return inner_->Flush(); });
}
absl::Status BreakerConnection::Drain() {
  return Guard([&] { return inner_->Drain(); });
}

}  // namespace latticekv
