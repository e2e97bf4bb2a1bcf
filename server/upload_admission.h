// Grants memory to uploads, first come first served, so that half-uploaded blocks together never
// hold more than half of the cap and every admitted upload has all it needs to become a block.
#ifndef LATTICEKV_SERVER_UPLOAD_ADMISSION_H_
#define LATTICEKV_SERVER_UPLOAD_ADMISSION_H_

#include <cstdint>
#include <deque>
#include <functional>

#include "absl/status/statusor.h"
#include "core/base/clock.h"
#include "core/base/mutex.h"
#include "core/store/tiered_store.h"

namespace latticekv {

class UploadAdmission;

// Memory granted to one upload; gives it back on destruction. Movable. Never destroy one while
// holding a lock that a grant callback takes: others' grants run then.
class UploadTicket {
 public:
  UploadTicket() = default;
  UploadTicket(UploadTicket&& other) noexcept { *this = std::move(other); }
  UploadTicket& operator=(UploadTicket&& other) noexcept;
  ~UploadTicket() { Release(); }
  void Release();
  // The reservation passes to the stored block; the ticket's share of the upload cap stays until
  // Release().
  Reservation TakeReservation() { return std::move(reservation_); }

 private:
  friend class UploadAdmission;
  UploadAdmission* admission_ = nullptr;
  size_t bytes_ = 0;
  Reservation reservation_;
};

// Thread-safe. Outlives its tickets.
class UploadAdmission {
 public:
  using Done = std::function<void(absl::StatusOr<UploadTicket>)>;

  UploadAdmission(TieredStore* store, size_t capacity_bytes, int64_t wait_timeout_ms,
                  const Clock* clock)
      : store_(store),
        limit_bytes_(capacity_bytes / 2),
        wait_timeout_ms_(wait_timeout_ms),
        clock_(clock) {}

  // Calls `done` with a ticket for `bytes`, from within or later from another thread; or with
  // RESOURCE_EXHAUSTED when `bytes` can never be granted, or was not within the wait timeout
  // although no other upload held memory. Returns an id for Cancel.
  uint64_t Request(size_t bytes, Done done);
  // Drops a waiting request without calling its `done`.
  void Cancel(uint64_t id);
  // Grants what can be granted now; called on release and, for room that appears otherwise, by a
  // timer.
  void Poke();

  size_t limit_bytes() const { return limit_bytes_; }
  size_t in_flight_bytes() const;

 private:
  friend class UploadTicket;
  struct Waiting {
    uint64_t id;
    size_t bytes;
    int64_t since_ms;
    Done done;
  };
  void GiveBack(size_t bytes);

  TieredStore* const store_;
  const size_t limit_bytes_;
  const int64_t wait_timeout_ms_;
  const Clock* const clock_;
  mutable Mutex mutex_;
  size_t in_flight_bytes_ LKV_GUARDED_BY(mutex_) = 0;
  uint64_t next_id_ LKV_GUARDED_BY(mutex_) = 1;
  std::deque<Waiting> waiting_ LKV_GUARDED_BY(mutex_);
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_UPLOAD_ADMISSION_H_
