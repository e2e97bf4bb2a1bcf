// A progress line on a terminal; silent elsewhere.
#ifndef LATTICEKV_CLIENT_CLI_PROGRESS_H_
#define LATTICEKV_CLIENT_CLI_PROGRESS_H_

#include <cstdint>
#include <string>

#include "core/base/mutex.h"

namespace latticekv {

// Thread-safe.
class Progress {
 public:
  // `total` 0: unknown, the count itself is shown.
  Progress(std::string what, uint64_t total);
  // Wipes the line.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void Add(uint64_t done = 1);

 private:
  const std::string what_;
  const uint64_t total_;
  const bool visible_;
  Mutex mutex_;
  uint64_t done_ LKV_GUARDED_BY(mutex_) = 0;
  int64_t shown_ms_ LKV_GUARDED_BY(mutex_) = 0;
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_CLI_PROGRESS_H_
