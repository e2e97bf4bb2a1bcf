#include "server/read_pool.h"

#include <utility>

namespace latticekv {
namespace {

constexpr uint64_t kBytesPerMs = 1'000'000;

}  // namespace

void ReadQueue::Push(int64_t turn, std::function<void()> job) {
  jobs_.emplace(turn, std::move(job));
}

std::function<void()> ReadQueue::Pop() {
  std::function<void()> job = std::move(jobs_.begin()->second);
  jobs_.erase(jobs_.begin());
  return job;
}

int64_t ReadPool::TurnOf(int64_t now_ms, uint64_t bytes) {
  return now_ms + static_cast<int64_t>(bytes / kBytesPerMs);
}

}  // namespace latticekv
