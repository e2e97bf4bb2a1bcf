// The ring in shared memory that a get's parts come through: how both sides count in it.
#ifndef LATTICEKV_PROTO_WINDOW_RING_H_
#define LATTICEKV_PROTO_WINDOW_RING_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace latticekv {

// A window starts with the count of bytes that the client is done with; the ring follows. Parts
// start at multiples of kAlignment, counted from the begin of the get on, and never wrap.
class WindowRing {
 public:
  static constexpr uint64_t kAlignment = 64;
  static constexpr uint64_t kHeadBytes = kAlignment;
  static constexpr uint64_t kMinBytes = kHeadBytes + kAlignment;

  // `window` is aligned to 8 bytes and has `bytes` >= kMinBytes.
  WindowRing(std::byte* window, uint64_t bytes)
      : done_(reinterpret_cast<uint64_t*>(window)),
        ring_(window + kHeadBytes),
        ring_bytes_((bytes - kHeadBytes) / kAlignment * kAlignment) {}

  // Where the next part of `bytes` goes when `position` is the end of the one before.
  uint64_t Place(uint64_t position, uint64_t bytes) const {
    const uint64_t to_end = ring_bytes_ - position % ring_bytes_;
    return bytes <= to_end ? position : position + to_end;
  }
  static uint64_t End(uint64_t place, uint64_t bytes) {
    return place + (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }
  // True when a part lies at a place where it may lie.
  bool Valid(uint64_t place, uint64_t bytes) const {
    return place % kAlignment == 0 && bytes <= ring_bytes_ - place % ring_bytes_;
  }
  std::byte* at(uint64_t place) const { return ring_ + place % ring_bytes_; }
  uint64_t ring_bytes() const { return ring_bytes_; }
  uint64_t done() const {
    return std::atomic_ref<uint64_t>(*done_).load(std::memory_order_acquire);
  }
  void SetDone(uint64_t done) const {
    std::atomic_ref<uint64_t>(*done_).store(done, std::memory_order_release);
  }

 private:
  uint64_t* const done_;
  std::byte* const ring_;
  const uint64_t ring_bytes_;
};

}  // namespace latticekv

#endif  // LATTICEKV_PROTO_WINDOW_RING_H_
