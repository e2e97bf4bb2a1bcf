#include "core/store/memory_budget.h"

#include <algorithm>
#include <utility>

namespace latticekv {

Reservation::Reservation(Reservation&& other) noexcept
    : budget_(std::exchange(other.budget_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  if (this != &other) {
    Release();
    budget_ = std::exchange(other.budget_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}

void Reservation::Release() { ShrinkTo(0); }

void Reservation::ShrinkTo(size_t bytes) {
  if (budget_ == nullptr || bytes >= bytes_) return;
  budget_->used_.fetch_sub(bytes_ - bytes, std::memory_order_relaxed);
  bytes_ = bytes;
  if (bytes == 0) budget_ = nullptr;
}

Reservation Reservation::Split(size_t bytes) {
  Reservation out(budget_, std::min(bytes, bytes_));
  bytes_ -= out.bytes_;
  if (bytes_ == 0) budget_ = nullptr;
  return out;
}

bool MemoryBudget::TryReserve(size_t bytes, Reservation* out) {
  size_t used = used_.load(std::memory_order_relaxed);
  do {
    if (bytes > capacity_ || used > capacity_ - bytes) return false;
  } while (!used_.compare_exchange_weak(used, used + bytes, std::memory_order_relaxed));
  size_t peak = peak_.load(std::memory_order_relaxed);
  while (peak < used + bytes &&
         !peak_.compare_exchange_weak(peak, used + bytes, std::memory_order_relaxed)) {
  }
  *out = Reservation(this, bytes);
  return true;
}

}  // namespace latticekv
