#include "tests/bench/eviction_trace.h"

#include <algorithm>
#include <queue>
#include <utility>

#include "tests/support/sample_chunk.h"

namespace latticekv::bench {
namespace {

constexpr uint32_t kChunkTokens = 256;

class Generator {
 public:
  explicit Generator(const TraceOptions& options) : options_(options), random_(options.seed) {
    for (uint32_t i = 0; i < options.system_prompts; ++i) prompts_.push_back(Chunks(1, 16));
    documents_.resize(uint64_t{options.documents} * options.system_prompts);
    for (uint32_t i = 0; i < options.documents; ++i) document_chunks_.push_back(Between(4, 32));
    for (uint32_t i = 0; i < options.conversations; ++i) Open(random_.Below(kLongestPause));
  }

  std::vector<TraceRequest> Run() {
    std::vector<TraceRequest> out;
    uint32_t burst = 0;
    while (out.size() < options_.requests) {
      if (burst == 0 && options_.scan_gap > 0 && random_.Below(options_.scan_gap) == 0) {
        burst = kBurst;
      }
      ++requests_;
      // Within a burst, three scans for each other request.
      if (burst > 0 && random_.Below(4) != 0) {
        --burst;
        out.push_back(Scan());
        continue;
      }
      out.push_back(Turn());
    }
    return out;
  }

 private:
  static constexpr uint32_t kBurst = 50;
  static constexpr uint64_t kLongestPause = 1 << 14;

  struct Conversation {
    TraceRequest chunks;
    uint32_t turns_left = 0;
  };
  using Event = std::pair<uint64_t, uint32_t>;  // time and conversation

  uint32_t Between(uint32_t low, uint32_t high) { return low + random_.Below(high - low + 1); }

  TraceRequest Chunks(uint32_t low, uint32_t high) {
    TraceRequest out(Between(low, high));
    for (TraceChunk& chunk : out) chunk = {++last_id_, kChunkTokens};
    return out;
  }

  // 0 .. n - 1, with weights 1 / (rank + 1).
  uint32_t Popular(uint32_t n) {
    uint64_t total = 0;
    for (uint32_t i = 0; i < n; ++i) total += kWeight / (i + 1);
    uint64_t at = random_.Next() % total;
    uint32_t i = 0;
    while (at >= kWeight / (i + 1)) at -= kWeight / (i++ + 1);
    return i;
  }

  // A user who begins at `time`.
  void Open(uint64_t time) {
    Conversation c;
    uint32_t prompt = Popular(options_.system_prompts);
    if (options_.drift > 0) {
      prompt = (prompt + requests_ / options_.drift * 7) % options_.system_prompts;
    }
    c.chunks = prompts_[prompt];
    if (random_.Below(100) < 25) {
      const uint32_t n = Popular(options_.documents);
      TraceRequest& document = documents_[uint64_t{prompt} * options_.documents + n];
      if (document.empty()) document = Chunks(document_chunks_[n], document_chunks_[n]);
      c.chunks.insert(c.chunks.end(), document.begin(), document.end());
    }
    const bool single = random_.Below(100) < options_.single_turn_percent;
    c.turns_left = single ? 1 : Between(2, 12);
    events_.push({time, static_cast<uint32_t>(conversations_.size())});
    conversations_.push_back(std::move(c));
  }

  void Extend(TraceRequest* chunks, uint32_t tokens) {
    TraceChunk& tail = chunks->back();
    if (tail.tokens < kChunkTokens) {
      const uint32_t added = std::min(tokens, kChunkTokens - tail.tokens);
      tail = {++last_id_, tail.tokens + added, tail.id, tail.tokens};
      tokens -= added;
    }
    for (; tokens > 0; tokens -= std::min(tokens, kChunkTokens)) {
      chunks->push_back({++last_id_, std::min(tokens, kChunkTokens)});
    }
  }

  TraceRequest Turn() {
    const auto [time, n] = events_.top();
    events_.pop();
    Extend(&conversations_[n].chunks, Between(100, 1200));
    TraceRequest out = conversations_[n].chunks;
    for (TraceChunk& chunk : conversations_[n].chunks) {
      chunk.supersedes = 0;
      chunk.superseded_tokens = 0;
    }
    const uint64_t pause = (uint64_t{16} << random_.Below(10)) + random_.Below(16);
    if (--conversations_[n].turns_left > 0) {
      events_.push({time + pause, n});
    } else {
      conversations_[n].chunks = {};
      Open(time + pause);
    }
    return out;
  }

  TraceRequest Scan() { return Chunks(12, 48); }

  static constexpr uint64_t kWeight = 1 << 20;
  const TraceOptions options_;
  testing::Random random_;
  uint64_t last_id_ = 0;
  uint32_t requests_ = 0;
  std::vector<TraceRequest> prompts_;
  std::vector<TraceRequest> documents_;  // by prompt and document: the prefix is part of a chunk
  std::vector<uint32_t> document_chunks_;
  std::vector<Conversation> conversations_;
  std::priority_queue<Event, std::vector<Event>, std::greater<Event>> events_;
};

}  // namespace

std::vector<TraceRequest> MakeTrace(const TraceOptions& options) {
  return Generator(options).Run();
}

}  // namespace latticekv::bench
