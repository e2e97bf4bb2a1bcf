#include "client/cli/progress.h"

#include <unistd.h>

#include <cstdio>
#include <utility>

#include "core/base/clock.h"

namespace latticekv {
namespace {

constexpr int64_t kMinIntervalMs = 100;
constexpr const char* kWipeLine = "\r\033[K";

}  // namespace

Progress::Progress(std::string what, uint64_t total)
    : what_(std::move(what)), total_(total), visible_(isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  if (visible_) std::fprintf(stderr, "%s", kWipeLine);
}

void Progress::Add(uint64_t done) {
  if (!visible_) return;
  MutexLock lock(mutex_);
  done_ += done;
  const int64_t now_ms = Clock::Real()->MonotonicMs();
  if (now_ms - shown_ms_ < kMinIntervalMs) return;
  shown_ms_ = now_ms;
  const auto count = static_cast<unsigned long long>(done_);
  if (total_ == 0) {
    std::fprintf(stderr, "%s%s %llu", kWipeLine, what_.c_str(), count);
  } else {
    std::fprintf(stderr, "%s%s %llu/%llu (%d %%)", kWipeLine, what_.c_str(), count,
                 static_cast<unsigned long long>(total_), static_cast<int>(done_ * 100 / total_));
  }
  std::fflush(stderr);
}

}  // namespace latticekv
