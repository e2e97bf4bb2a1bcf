// Replays a trace of prompts on the store and on models of other eviction policies; prints hit
// rates as a table. LATTICEKV_SEED sets the trace. docs/results/eviction.md has the result.
#include <cstdio>
#include <functional>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>

#include "core/store/tiered_store.h"
#include "tests/bench/eviction_trace.h"
#include "tests/support/mutation.h"

namespace latticekv::bench {
namespace {

// What a block counts against the capacity: 64 bytes a token and the index.
size_t BytesOf(uint32_t tokens) { return TieredStore::EntryBytes(64 * size_t{tokens}, 0); }

class Cache {
 public:
  virtual ~Cache() = default;
  virtual bool Has(uint64_t id) const = 0;
  virtual void Use(uint64_t id) = 0;
  virtual void Put(const TraceChunk& chunk, uint64_t parent) = 0;
  // Drops a partial tail that a longer chunk took the place of, unless it has children.
  virtual void Supersede(uint64_t id) = 0;
};

// The real store. Reservations stand for the bytes, so that the replay needs no memory for them.
class StoreCache : public Cache {
 public:
  explicit StoreCache(size_t capacity_bytes) {
    StoreOptions options;
    options.memory_bytes = capacity_bytes;
    store_ = *TieredStore::Open(options);
  }
  bool Has(uint64_t id) const override { return store_->Peek(Key(id)) != nullptr; }
  void Use(uint64_t id) override { store_->Get(Key(id)); }
  void Put(const TraceChunk& chunk, uint64_t parent) override {
    auto reservation = store_->Reserve(BytesOf(chunk.tokens));
    if (!reservation.ok()) return;
    StoredBlock block;
    block.key = Key(chunk.id);
    if (parent != 0) block.parent = Key(parent);
    block.reservation = *std::move(reservation);
    store_->Put(std::move(block)).IgnoreError();
  }
  void Supersede(uint64_t id) override {
    if (store_->Children(Key(id)).empty()) store_->Delete(Key(id));
  }

 private:
  static BlockKey Key(uint64_t id) {
    return Sha256Of({reinterpret_cast<const std::byte*>(&id), sizeof(id)});
  }
  std::unique_ptr<TieredStore> store_;
};

// A model of a policy: blocks leave in the order of a rank set when they are put or used.
class RankedCache : public Cache {
 public:
  struct Block {
    uint64_t parent = 0;
    size_t bytes = 0;
    uint32_t children = 0;
    uint32_t uses = 0;
    double rank = 0;
  };
  struct State {
    double now = 0;      // bytes put or used
    double evicted = 0;  // highest rank that was evicted
    double capacity = 0;
  };
  using Rank = std::function<double(const State&, const Block&, uint64_t id)>;

  RankedCache(size_t capacity_bytes, bool leaves_first, Rank rank)
      : leaves_first_(leaves_first), rank_(std::move(rank)) {
    state_.capacity = static_cast<double>(capacity_bytes);
  }
  bool Has(uint64_t id) const override { return blocks_.contains(id); }
  void Use(uint64_t id) override {
    Block& block = blocks_.at(id);
    Unlist(id, block);
    ++block.uses;
    Set(id, block);
  }
  void Put(const TraceChunk& chunk, uint64_t parent) override {
    const size_t bytes = BytesOf(chunk.tokens);
    while (static_cast<double>(used_ + bytes) > state_.capacity) {
      if (order_.empty()) return;
      const uint64_t victim = order_.begin()->second;
      state_.evicted = std::max(state_.evicted, blocks_.at(victim).rank);
      Remove(victim);
    }
    used_ += bytes;
    Block& block = blocks_[chunk.id];
    block.parent = parent;
    block.bytes = bytes;
    const auto above = blocks_.find(parent);
    if (above != blocks_.end()) {
      Unlist(parent, above->second);
      ++above->second.children;
      List(parent, above->second);
    }
    Set(chunk.id, block);
  }
  void Supersede(uint64_t id) override {
    const auto it = blocks_.find(id);
    if (it != blocks_.end() && it->second.children == 0) Remove(id);
  }

 private:
  void Unlist(uint64_t id, const Block& block) { order_.erase({block.rank, id}); }
  void List(uint64_t id, const Block& block) {
    if (!leaves_first_ || block.children == 0) order_.insert({block.rank, id});
  }
  void Set(uint64_t id, Block& block) {
    state_.now += static_cast<double>(block.bytes);
    block.rank = rank_(state_, block, id);
    List(id, block);
  }
  void Remove(uint64_t id) {
    const Block block = blocks_.at(id);
    Unlist(id, block);
    used_ -= block.bytes;
    blocks_.erase(id);
    const auto above = blocks_.find(block.parent);
    if (above == blocks_.end()) return;
    Unlist(above->first, above->second);
    --above->second.children;
    if (leaves_first_) above->second.rank = std::max(above->second.rank, block.rank);
    List(above->first, above->second);
  }

  const bool leaves_first_;
  const Rank rank_;
  State state_;
  size_t used_ = 0;
  std::unordered_map<uint64_t, Block> blocks_;
  std::set<std::pair<double, uint64_t>> order_;
};

struct HitRate {
  uint64_t tokens = 0, hit_tokens = 0, blocks = 0, hit_blocks = 0;
};

// The first fifth of the trace warms up and is not counted.
HitRate Replay(const std::vector<TraceRequest>& trace, Cache& cache,
               const std::function<void(size_t)>& before_request) {
  HitRate out;
  for (size_t n = 0; n < trace.size(); ++n) {
    before_request(n);
    const TraceRequest& request = trace[n];
    size_t prefix = 0;
    while (prefix < request.size() && cache.Has(request[prefix].id)) ++prefix;
    if (n >= trace.size() / 5) {
      out.blocks += request.size();
      out.hit_blocks += prefix;
      for (size_t i = 0; i < request.size(); ++i) {
        out.tokens += request[i].tokens;
        if (i < prefix) out.hit_tokens += request[i].tokens;
      }
      // The leading tokens of a longer tail.
      if (prefix < request.size() && request[prefix].supersedes != 0 &&
          cache.Has(request[prefix].supersedes)) {
        out.hit_tokens += request[prefix].superseded_tokens;
      }
    }
    for (size_t i = 0; i < request.size(); ++i) {
      if (cache.Has(request[i].id)) {
        cache.Use(request[i].id);
      } else {
        cache.Put(request[i], i == 0 ? 0 : request[i - 1].id);
        if (request[i].supersedes != 0) cache.Supersede(request[i].supersedes);
      }
    }
  }
  return out;
}

struct Policy {
  std::string name;
  std::function<std::unique_ptr<Cache>(size_t capacity_bytes)> make;
};

Policy Ranked(std::string name, bool leaves_first, RankedCache::Rank rank) {
  return {std::move(name), [=](size_t capacity_bytes) -> std::unique_ptr<Cache> {
            return std::make_unique<RankedCache>(capacity_bytes, leaves_first, rank);
          }};
}

// When each chunk is asked for, for the policy that knows the future.
class Future {
 public:
  explicit Future(const std::vector<TraceRequest>& trace) {
    for (size_t n = 0; n < trace.size(); ++n) {
      for (const TraceChunk& chunk : trace[n]) requests_[chunk.id].push_back(n);
    }
  }
  void At(size_t n) { now_ = n; }
  double RankOf(uint64_t id) const {
    const auto& at = requests_.at(id);
    const auto next = std::upper_bound(at.begin(), at.end(), now_);
    return next == at.end() ? -std::numeric_limits<double>::infinity()
                            : -static_cast<double>(*next);
  }

 private:
  std::unordered_map<uint64_t, std::vector<size_t>> requests_;
  size_t now_ = 0;
};

void Table(const char* title, const TraceOptions& options) {
  const std::vector<TraceRequest> trace = MakeTrace(options);
  Future future(trace);
  using State = RankedCache::State;
  using Block = RankedCache::Block;
  const auto lru = [](const State& s, const Block&, uint64_t) { return s.now; };
  const std::vector<Policy> policies = {
      Ranked("LRU", false, lru),
      Ranked("LRU, leaves first", true, lru),
      Ranked("leaves first, reuse (2Q-like)", true,
             [](const State& s, const Block& b, uint64_t) {
               return s.now + (b.uses > 0 ? 2 * s.capacity : 0);
             }),
      Ranked("leaves first, GDSF", true,
             [](const State& s, const Block& b, uint64_t) {
               return s.evicted + s.capacity / 10 * std::min(b.uses + 1, 16u);
             }),
      Ranked("leaves first, recency + frequency", true,
             [](const State& s, const Block& b, uint64_t) {
               return s.now + s.capacity / 2 * std::min(b.uses, 16u);
             }),
      {"the store", [](size_t capacity) { return std::make_unique<StoreCache>(capacity); }},
      Ranked("leaves first, knows the future", true,
             [&future](const State&, const Block&, uint64_t id) { return future.RankOf(id); }),
      Ranked("no limit", false, lru),
  };
  size_t chunks = 0;
  for (const TraceRequest& request : trace) chunks += request.size();
  printf("\n%s: seed %llu, %zu requests, %zu blocks asked for. Tokens / blocks hit, %%.\n\n", title,
         static_cast<unsigned long long>(options.seed), trace.size(), chunks);
  const size_t capacities[] = {500, 1000, 2000, 4000, 8000};
  printf("| policy |");
  for (const size_t blocks : capacities) printf(" %zu blocks |", blocks);
  printf("\n|---|---|---|---|---|---|\n");
  for (const Policy& policy : policies) {
    printf("| %s |", policy.name.c_str());
    for (const size_t blocks : capacities) {
      const bool limited = policy.name != "no limit";
      const auto cache = policy.make(limited ? blocks * BytesOf(256) : size_t{1} << 50);
      const HitRate r = Replay(trace, *cache, [&](size_t n) { future.At(n); });
      printf(" %.1f / %.1f |", 100.0 * static_cast<double>(r.hit_tokens) / r.tokens,
             100.0 * static_cast<double>(r.hit_blocks) / r.blocks);
    }
    printf("\n");
    fflush(stdout);
  }
}

void Run() {
  TraceOptions options;
  options.seed = testing::FromEnvironment("LATTICEKV_SEED", 1);
  Table("Conversations, shared prompts and scans", options);
  options.scan_gap = 0;
  options.drift = 1'000;
  Table("No scans, popularity drifts four times as fast", options);
  options.system_prompts = 400;
  options.drift = 4'000;
  options.scan_gap = 150;
  options.single_turn_percent = 80;
  Table("Many prompts, most conversations of one turn, scans", options);
}

}  // namespace
}  // namespace latticekv::bench

int main() { latticekv::bench::Run(); }
