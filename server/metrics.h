// Counters of the running daemon.
#ifndef LATTICEKV_SERVER_METRICS_H_
#define LATTICEKV_SERVER_METRICS_H_

#include <atomic>
#include <cstdint>

namespace latticekv {

// Thread-safe; read one by one, so sums may be off by what is under way.
struct Metrics {
  std::atomic<uint64_t> gets{0};            // blocks served
  std::atomic<uint64_t> misses{0};          // blocks asked for and not served
  std::atomic<uint64_t> have_it{0};         // puts answered from the header alone
  std::atomic<uint64_t> corrupt_blocks{0};  // dropped
  std::atomic<uint64_t> encode_bytes{0};    // raw bytes
  std::atomic<uint64_t> decode_bytes{0};
  std::atomic<uint64_t> cpu_encodes{0};     // chunks; those of a GPU are counted by its executor
  std::atomic<uint64_t> cpu_decodes{0};     // layers, or frames that were checked
  std::atomic<uint64_t> encode_busy_ns{0};  // summed over threads
  std::atomic<uint64_t> decode_busy_ns{0};
  std::atomic<int64_t> open_streams{0};
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_METRICS_H_
