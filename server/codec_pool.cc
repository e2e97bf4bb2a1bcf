#include "server/codec_pool.h"

#include <utility>

namespace latticekv {

void CodecQueue::Push(Place kind, std::function<void()> job) {
  (kind == Place::kEncode ? encodes_ : decodes_).push_back(std::move(job));
}

std::function<void()> CodecQueue::Pop() {
  auto& queue = encodes_.empty() || (decode_next_ && !decodes_.empty()) ? decodes_ : encodes_;
  decode_next_ = &queue == &encodes_;
  std::function<void()> job = std::move(queue.front());
  queue.pop_front();
  return job;
}

}  // namespace latticekv
