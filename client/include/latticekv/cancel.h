// Breaks a put or a get off from another thread.
#ifndef LATTICEKV_CANCEL_H_
#define LATTICEKV_CANCEL_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <utility>

#include "core/base/mutex.h"

namespace latticekv {

// Copies are the same token; one token may stand in many requests. Thread-safe. A default token can
// not be cancelled.
class CancelToken {
  struct State {
    Mutex mutex;
    bool cancelled LKV_GUARDED_BY(mutex) = false;
    uint64_t next_id LKV_GUARDED_BY(mutex) = 0;
    std::map<uint64_t, std::function<void()>> callbacks LKV_GUARDED_BY(mutex);
  };

 public:
  CancelToken() = default;
  static CancelToken Make() {
    CancelToken out;
    out.state_ = std::make_shared<State>();
    return out;
  }

  // Calls with this token end soon with CANCELLED, and those that come later at once.
  void Cancel() const {
    if (!state_) return;
    MutexLock lock(state_->mutex);
    state_->cancelled = true;
    for (const auto& [id, callback] : state_->callbacks) callback();
  }
  bool cancelled() const {
    if (!state_) return false;
    MutexLock lock(state_->mutex);
    return state_->cancelled;
  }

  // While it lives, Cancel() calls `callback` (which must not use the token); at once when that
  // happened before.
  class Registration {
   public:
    Registration(const CancelToken& token, std::function<void()> callback) : state_(token.state_) {
      if (!state_) return;
      MutexLock lock(state_->mutex);
      if (state_->cancelled) callback();
      id_ = state_->next_id++;
      state_->callbacks[id_] = std::move(callback);
    }
    ~Registration() {
      if (!state_) return;
      MutexLock lock(state_->mutex);
      state_->callbacks.erase(id_);
    }
    Registration(const Registration&) = delete;
    Registration& operator=(const Registration&) = delete;

   private:
    const std::shared_ptr<State> state_;
    uint64_t id_ = 0;
  };

 private:
  std::shared_ptr<State> state_;
};

}  // namespace latticekv

#endif  // LATTICEKV_CANCEL_H_
