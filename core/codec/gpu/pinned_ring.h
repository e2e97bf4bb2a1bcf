// Hands out pieces of one buffer in order, and takes them back in any order.
#ifndef LATTICEKV_CORE_CODEC_GPU_PINNED_RING_H_
#define LATTICEKV_CORE_CODEC_GPU_PINNED_RING_H_

#include <cstddef>
#include <deque>
#include <optional>

namespace latticekv {

// Offsets into a buffer of a fixed size; room comes back when everything taken earlier was given
// back too, so nothing ever fragments. Not thread-safe.
class PinnedRing {
 public:
  static constexpr size_t kAlignment = 256;

  // What passes the last multiple of the alignment is not used.
  explicit PinnedRing(size_t bytes) : bytes_(bytes / kAlignment * kAlignment) {}

  // The offset of `bytes` (at least 1), aligned; nothing when there is no room now.
  std::optional<size_t> Take(size_t bytes);
  void GiveBack(size_t offset);

  size_t bytes() const { return bytes_; }
  bool empty() const { return pieces_.empty(); }

 private:
  struct Piece {
    size_t offset, end;
    bool free;
  };
  const size_t bytes_;
  std::deque<Piece> pieces_;  // oldest first
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_GPU_PINNED_RING_H_
