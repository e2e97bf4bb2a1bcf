// Where the codec's time goes, stage by stage, for benchmarks. Costs one thread-local load per
// stage and unit when nobody listens.
#ifndef LATTICEKV_CORE_CODEC_STAGE_TIMER_H_
#define LATTICEKV_CORE_CODEC_STAGE_TIMER_H_

#include <time.h>

#include <array>
#include <string_view>

namespace latticekv {

enum class CodecStage {
  kLoad,         // cast to float, rotary embedding removed
  kSteps,        // steps from query energy and norms
  kQuantize,     // scaling, means, nearest lattice points, spreads, outliers
  kCost,         // sizes of candidates compared
  kMeasure,      // errors of what was written
  kEntropyCode,  // rANS, encoder
  kEntropyDecode,
  kReconstruct,  // dequantise, rotary embedding, cast
  kExact,        // byte planes and zstd, both directions
  kCount,
};

inline constexpr std::array<std::string_view, static_cast<size_t>(CodecStage::kCount)>
    kCodecStageNames = {"load",         "steps",          "quantize",    "cost", "measure",
                        "entropy code", "entropy decode", "reconstruct", "exact"};

struct StageTimes {
  std::array<double, static_cast<size_t>(CodecStage::kCount)> seconds{};
};

// The calling thread's listener; null for none. Must outlive the encoding and decoding it listens
// to.
inline thread_local StageTimes* stage_times = nullptr;

// Adds the CPU time between construction and destruction to a stage.
class ScopedStage {
 public:
  explicit ScopedStage(CodecStage stage) : times_(stage_times), stage_(stage) {
    if (times_ != nullptr) start_ = Now();
  }
  ~ScopedStage() {
    if (times_ == nullptr) return;
    times_->seconds[static_cast<size_t>(stage_)] += Now() - start_;
  }
  ScopedStage(const ScopedStage&) = delete;
  ScopedStage& operator=(const ScopedStage&) = delete;

 private:
  // CPU time of this thread: what others do on the machine does not count.
  static double Now() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  }

  StageTimes* const times_;
  const CodecStage stage_;
  double start_ = 0;
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_STAGE_TIMER_H_
