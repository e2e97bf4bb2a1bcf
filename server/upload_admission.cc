#include "server/upload_admission.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/error_detail.h"

namespace latticekv {

UploadTicket& UploadTicket::operator=(UploadTicket&& other) noexcept {
  if (this != &other) {
    Release();
    admission_ = std::exchange(other.admission_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
    reservation_ = std::move(other.reservation_);
  }
  return *this;
}

void UploadTicket::Release() {
  reservation_.Release();
  if (UploadAdmission* admission = std::exchange(admission_, nullptr)) admission->GiveBack(bytes_);
}

uint64_t UploadAdmission::Request(size_t bytes, Done done) {
  if (bytes > limit_bytes_) {
    done(ErrorWith(
        absl::StatusCode::kResourceExhausted, v1::REASON_MEMORY_FULL,
        absl::StrCat("storing this block takes ", bytes,
                     " bytes of memory while it is "
                     "encoded, and uploads may take ",
                     limit_bytes_, " (half of --memory_bytes); use smaller chunks or more memory"),
        "--memory_bytes"));
    return 0;
  }
  uint64_t id;
  {
    MutexLock lock(mutex_);
    id = next_id_++;
    waiting_.push_back({id, bytes, clock_->MonotonicMs(), std::move(done)});
  }
  Poke();
  return id;
}

void UploadAdmission::Cancel(uint64_t id) {
  Done dropped;
  MutexLock lock(mutex_);
  for (auto it = waiting_.begin(); it != waiting_.end(); ++it) {
    if (it->id != id) continue;
    dropped = std::move(it->done);
    waiting_.erase(it);
    return;
  }
}

void UploadAdmission::GiveBack(size_t bytes) {
  {
    MutexLock lock(mutex_);
    in_flight_bytes_ -= bytes;
  }
  Poke();
}

void UploadAdmission::Poke() {
  while (true) {
    Done done;
    absl::StatusOr<UploadTicket> result = absl::UnknownError("");
    {
      MutexLock lock(mutex_);
      if (waiting_.empty()) return;
      Waiting& first = waiting_.front();
      if (first.bytes > limit_bytes_ - in_flight_bytes_) return;
      auto reservation = store_->Reserve(first.bytes);
      if (reservation.ok()) {
        UploadTicket ticket;
        ticket.admission_ = this;
        ticket.bytes_ = first.bytes;
        ticket.reservation_ = *std::move(reservation);
        in_flight_bytes_ += first.bytes;
        result = std::move(ticket);
      } else if (in_flight_bytes_ > 0 ||
                 clock_->MonotonicMs() - first.since_ms < wait_timeout_ms_) {
        return;  // other uploads and readers give memory back soon
      } else {
        result = WithReason(reservation.status(), v1::REASON_MEMORY_FULL);
      }
      done = std::move(first.done);
      waiting_.pop_front();
    }
    done(std::move(result));
  }
}

size_t UploadAdmission::in_flight_bytes() const {
  MutexLock lock(mutex_);
  return in_flight_bytes_;
}

}  // namespace latticekv
