// Traces of prefix-cache requests, made from a seed with integers alone: the same on every machine.
#ifndef LATTICEKV_TESTS_BENCH_EVICTION_TRACE_H_
#define LATTICEKV_TESTS_BENCH_EVICTION_TRACE_H_

#include <cstdint>
#include <vector>

namespace latticekv::bench {

// One chunk of a request's prompt. Ids are unique over the trace; equal prefixes share them.
struct TraceChunk {
  uint64_t id = 0;
  uint32_t tokens = 0;
  uint64_t supersedes = 0;  // the partial tail that this chunk begins with; 0: none
  uint32_t superseded_tokens = 0;
};

// A prompt and its answer: all chunks of the sequence from its start.
using TraceRequest = std::vector<TraceChunk>;

struct TraceOptions {
  uint64_t seed = 1;
  uint32_t requests = 20'000;
  uint32_t system_prompts = 40;  // popularity falls as 1 / rank, as that of documents
  uint32_t documents = 300;
  uint32_t drift = 4'000;  // requests after which other prompts are the popular ones; 0: never
  uint32_t conversations = 400;       // open at a time
  uint32_t scan_gap = 150;            // requests between bursts of 50 scans, on average; 0: none
  uint32_t single_turn_percent = 35;  // of conversations: never come back
};

// Conversations of several turns under shared system prompts, some with a shared document, that
// come back after a pause spread evenly over ten powers of two; and bursts of scans.
std::vector<TraceRequest> MakeTrace(const TraceOptions& options);

}  // namespace latticekv::bench

#endif  // LATTICEKV_TESTS_BENCH_EVICTION_TRACE_H_
