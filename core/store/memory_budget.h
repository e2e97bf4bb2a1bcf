// One byte cap shared by stored frames and everything in flight.
#ifndef LATTICEKV_CORE_STORE_MEMORY_BUDGET_H_
#define LATTICEKV_CORE_STORE_MEMORY_BUDGET_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace latticekv {

class MemoryBudget;

// Bytes taken from a budget, given back on destruction. Movable.
class Reservation {
 public:
  Reservation() = default;
  Reservation(Reservation&& other) noexcept;
  Reservation& operator=(Reservation&& other) noexcept;
  ~Reservation() { Release(); }
  void Release();
  // Gives back all but `bytes` (no effect when it holds less).
  void ShrinkTo(size_t bytes);
  // Takes `bytes` of it (all, when it holds less) into a reservation of their own.
  Reservation Split(size_t bytes);
  size_t bytes() const { return bytes_; }

 private:
  friend class MemoryBudget;
  Reservation(MemoryBudget* budget, size_t bytes) : budget_(budget), bytes_(bytes) {}
  MemoryBudget* budget_ = nullptr;
  size_t bytes_ = 0;
};

// Thread-safe. Outlives its reservations.
class MemoryBudget {
 public:
  explicit MemoryBudget(size_t capacity_bytes) : capacity_(capacity_bytes) {}
  // False, taking nothing, when it would exceed the capacity.
  bool TryReserve(size_t bytes, Reservation* out);
  size_t capacity() const { return capacity_; }
  size_t used() const { return used_.load(std::memory_order_relaxed); }
  // The highest `used` since the start.
  size_t peak() const { return peak_.load(std::memory_order_relaxed); }

 private:
  friend class Reservation;
  const size_t capacity_;
  std::atomic<size_t> used_{0};
  std::atomic<size_t> peak_{0};
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_STORE_MEMORY_BUDGET_H_
