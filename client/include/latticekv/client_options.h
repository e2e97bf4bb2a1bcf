// Settings of a client; the defaults suit a worker beside its daemon.
#ifndef LATTICEKV_CLIENT_OPTIONS_H_
#define LATTICEKV_CLIENT_OPTIONS_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "latticekv/backoff_policy.h"
#include "latticekv/retry_policy.h"

namespace latticekv {

struct ClientOptions {
  // Of calls that are not streams, for each attempt.
  int64_t rpc_timeout_ms = 30'000;
  // A put without any word from the server for this long is broken off as UNAVAILABLE (and tried
  // again as the retry policy says).
  int64_t stream_idle_timeout_ms = 60'000;

  // A put announces blocks ahead of their acknowledgements up to these many blocks and payload
  // bytes (one block at least). The server bounds the former by kMaxUnackedBlocksPerStream.
  uint32_t max_inflight_blocks = 16;
  size_t max_inflight_bytes = size_t{64} << 20;

  // Prototypes, cloned for each call; null: LimitedErrorCount(5), ExponentialBackoff(50 ms, 5 s).
  std::shared_ptr<const RetryPolicy> retry_policy;
  std::shared_ptr<const BackoffPolicy> backoff_policy;
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_OPTIONS_H_
