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
  // bytes (one block at least; those in GPU memory count as none). The server bounds the former by
  // kMaxUnackedBlocksPerStream.
  uint32_t max_inflight_blocks = 16;
  size_t max_inflight_bytes = size_t{64} << 20;

  // Channels to the server. Calls take turns, so that calls of several threads run side by side.
  uint32_t connections = 1;

  // Payloads go to a server on this host (a unix socket or a loopback address) through a region of
  // shared memory of this size, leased from it, and come back through at most half of such a one;
  // 0, or a server that leases none: over the socket.
  size_t shared_memory_bytes = size_t{64} << 20;

  // With a breaker, a server that is away costs a worker microseconds and no errors: once a call
  // found it UNAVAILABLE, look-ups and gets miss and puts are dropped at once (their statuses say
  // so) until the server answers a probe in the background, every `breaker_probe_ms`.
  bool circuit_breaker = false;
  int64_t breaker_probe_ms = 250;

  // Prototypes, cloned for each call; null: LimitedErrorCount(5), ExponentialBackoff(50 ms, 5 s).
  std::shared_ptr<const RetryPolicy> retry_policy;
  std::shared_ptr<const BackoffPolicy> backoff_policy;
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_OPTIONS_H_
