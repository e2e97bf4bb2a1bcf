// How long each part of a start took, for the log.
#ifndef LATTICEKV_SERVER_START_PHASES_H_
#define LATTICEKV_SERVER_START_PHASES_H_

#include <chrono>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace latticekv {

class StartPhases {
 public:
  // What has passed since the phase before.
  void Done(std::string_view phase) {
    const auto now = Clock::now();
    absl::StrAppend(&text_, text_.empty() ? "" : ", ", std::string(phase), " ",
                    Seconds(now - last_));
    last_ = now;
  }
  // "0.31 s: disk tier 0.20, GPU 0.11"
  std::string ToString() const { return absl::StrCat(Seconds(last_ - begin_), " s: ", text_); }

 private:
  using Clock = std::chrono::steady_clock;
  static std::string Seconds(Clock::duration d) {
    return absl::StrFormat("%.2f", std::chrono::duration<double>(d).count());
  }

  const Clock::time_point begin_ = Clock::now();
  Clock::time_point last_ = begin_;
  std::string text_;
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_START_PHASES_H_
