// Stores the KV blocks of an engine (16 tokens, say) as they come: merges those of one sequence
// into chunks, and the chunks of many sequences into few streams.
#ifndef LATTICEKV_BATCHING_WRITER_H_
#define LATTICEKV_BATCHING_WRITER_H_

#include <cstdint>
#include <future>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "latticekv/client.h"

namespace latticekv {

struct BatchLimits {
  // A batch leaves when its chunks have so many raw bytes or are so many.
  size_t max_bytes = size_t{32} << 20;
  uint32_t max_chunks = 256;
  // A token leaves at latest so long after it was appended, in a chunk that is not full if need be.
  // Shorter costs bytes: the same chunk goes again when it has grown.
  int64_t max_delay_ms = 500;
  // Batches under way at once, each on a stream of its own.
  uint32_t streams = 2;
  // Raw bytes that are appended and not acknowledged. What would pass it is dropped.
  size_t max_pending_bytes = size_t{256} << 20;
};

// What all puts of a writer say besides their tokens.
struct BatchTarget {
  RegisteredLayout layout;
  std::string session;  // all sequences' blocks go to it; empty: none
  PresetId preset = kDefaultPreset;
  bool durable = false;
  int64_t ttl_ms = 0;
  bool compress_on_worker = false;
};

// Thread-safe; calls for one sequence come one after the other.
class BatchingWriter {
 public:
  BatchingWriter(Client client, BatchTarget target, BatchLimits limits = {});
  // Sends what is left and waits for it.
  ~BatchingWriter();
  BatchingWriter(const BatchingWriter&) = delete;
  BatchingWriter& operator=(const BatchingWriter&) = delete;

  // The next tokens of the caller's sequence number `sequence`, which starts with its first Append.
  // Copies `planes` ([layer][plane], tokens.size() tokens each). The future says what became of
  // them: the error of the first chunk that failed, RESOURCE_EXHAUSTED when max_pending_bytes is
  // reached. After an error the sequence takes nothing more: its later blocks could not be found.
  std::future<absl::Status> Append(uint64_t sequence, std::span<const uint32_t> tokens,
                                   const std::vector<std::vector<PlaneView>>& planes);
  // The sequence has all its tokens: they leave without delay, and its number may be used anew.
  void End(uint64_t sequence);
  // Sends everything appended so far; waits until it is acknowledged or has failed.
  void Flush();

  struct Counters {
    uint64_t appends = 0, chunks_sent = 0, batches = 0, dropped_appends = 0;
    size_t pending_bytes = 0;
  };
  Counters counters() const;

 private:
  class Impl;
  const std::unique_ptr<Impl> impl_;
};

}  // namespace latticekv

#endif  // LATTICEKV_BATCHING_WRITER_H_
