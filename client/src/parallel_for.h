// Independent pieces of work over a few threads.
#ifndef LATTICEKV_CLIENT_SRC_PARALLEL_FOR_H_
#define LATTICEKV_CLIENT_SRC_PARALLEL_FOR_H_

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "core/base/mutex.h"

namespace latticekv {

// Calls `work(i)`, which returns an absl::Status, for each i below `count`, from up to `threads`
// threads. Returns an error of one of them; once there is one, no further work begins.
template <typename Work>
absl::Status ParallelFor(size_t count, size_t threads, const Work& work) {
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  Mutex mutex;
  absl::Status error;
  const auto run = [&] {
    for (size_t i = next++; i < count && !failed; i = next++) {
      absl::Status status = work(i);
      if (status.ok()) continue;
      MutexLock lock(mutex);
      if (!failed.exchange(true)) error = std::move(status);
    }
  };
  std::vector<std::thread> others;
  for (size_t t = 1; t < std::min(threads, count); ++t) others.emplace_back(run);
  run();
  for (std::thread& thread : others) thread.join();
  return error;
}

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_PARALLEL_FOR_H_
