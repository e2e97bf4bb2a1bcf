// Learns means and spreads of channels from the chunks that are stored, off their way.
#ifndef LATTICEKV_SERVER_PROFILE_LEARNING_H_
#define LATTICEKV_SERVER_PROFILE_LEARNING_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/mutex.h"
#include "core/codec/channel_statistics.h"
#include "core/codec/presets.h"
#include "core/store/memory_budget.h"
#include "server/codec_pool.h"
#include "server/layout_registry.h"

namespace latticekv {

struct LearningOptions {
  bool enabled = true;
  uint32_t tokens = 0;              // that one version is learnt from
  uint64_t max_relearn_tokens = 0;  // between two looks
  size_t max_waiting_bytes = 0;     // of raw chunks; one may wait in any case
  // Takes memory for sums, from the daemon's cap.
  std::function<absl::StatusOr<Reservation>(size_t bytes)> reserve;
};

// The first `tokens` tokens stored raw under a layout make the first version of its profile, unless
// a client registered one with statistics. Then, after as many tokens again and then at doubling
// distances, as many are looked at again: all but the last chunk go into the statistics, and if a
// profile of these codes that chunk in 98 % of the bytes that the version in use takes or fewer, it
// becomes the next version. Steps and query energy are the registered profile's.
//
// Thread-safe. One thread works. What waits for it is at most `tokens` tokens a layout, and beyond
// `max_waiting_bytes` chunks are passed over: then, and where several streams store at once, which
// tokens are learnt from depends on timing; of the same tokens the same profile is learnt.
class ProfileLearning {
 public:
  // `layouts` must outlive this.
  ProfileLearning(LayoutRegistry* layouts, const LearningOptions& options);

  struct Chunk {
    Digest fingerprint{};
    std::shared_ptr<const Layout> layout;
    uint32_t tokens = 0;
    uint64_t start_position = 0;
    PresetId preset = kDefaultPreset;
    std::vector<uint8_t> keep;
    ByteVector payload;  // as PutBlocks has it
    Reservation memory;  // of the payload
  };
  // Counts a chunk that was stored; true when it is wanted, and Learn must be called with it.
  bool Wants(const Digest& fingerprint, uint32_t tokens, size_t payload_bytes);
  void Learn(Chunk chunk);

  // Of this layout, since the start.
  uint64_t LearntTokens(const Digest& fingerprint) const;
  // Returns when nothing waits to be learnt from. For tests.
  void Wait();

 private:
  struct State {
    // Guarded by mutex_.
    uint64_t stored_tokens = 0;
    uint64_t next_look = 0;      // in stored_tokens
    uint64_t distance = 0;       // to the look after that
    uint32_t wanted_tokens = 0;  // of the look under way
    uint64_t learnt_tokens = 0;
    // Of the thread that learns.
    uint32_t seen_tokens = 0;  // of the look under way
    Reservation memory;
    std::unique_ptr<ChannelStatistics> statistics;
  };
  State& StateOf(const Digest& fingerprint) LKV_REQUIRES(mutex_);
  void Process(State& state, const Chunk& chunk);
  // Counts the chunk in; false when there is no memory for sums.
  bool AddTo(State& state, const Chunk& chunk);
  // Makes a version of what was learnt, if it is the first or codes `unseen` better.
  void MakeVersion(State& state, const Chunk& unseen);
  void EndLook(State& state);
  void Forget(size_t payload_bytes);

  LayoutRegistry* const layouts_;
  const LearningOptions options_;
  mutable Mutex mutex_;
  CondVar idle_;
  std::map<Digest, std::unique_ptr<State>> states_ LKV_GUARDED_BY(mutex_);
  size_t waiting_chunks_ LKV_GUARDED_BY(mutex_) = 0;
  size_t waiting_bytes_ LKV_GUARDED_BY(mutex_) = 0;
  CodecPool pool_;  // last: its thread ends first
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_PROFILE_LEARNING_H_
