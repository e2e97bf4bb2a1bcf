#include "core/codec/gpu/pinned_ring.h"

namespace latticekv {

std::optional<size_t> PinnedRing::Take(size_t bytes) {
  if (bytes == 0 || bytes > bytes_) return std::nullopt;
  const size_t size = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  size_t at = 0, end = bytes_;
  if (!pieces_.empty()) {
    const size_t oldest = pieces_.front().offset;
    at = pieces_.back().end;
    if (at <= oldest) {
      end = oldest;  // already wrapped
    } else if (size > bytes_ - at) {
      at = 0;
      end = oldest;
    }
  }
  if (size > end - at) return std::nullopt;
  pieces_.push_back({at, at + size, false});
  return at;
}

void PinnedRing::GiveBack(size_t offset) {
  for (Piece& piece : pieces_) {
    if (piece.offset == offset && !piece.free) {
      piece.free = true;
      break;
    }
  }
  while (!pieces_.empty() && pieces_.front().free) pieces_.pop_front();
}

}  // namespace latticekv
