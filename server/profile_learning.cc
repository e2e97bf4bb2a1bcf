#include "server/profile_learning.h"

#include <algorithm>
#include <utility>

#include "core/base/limits.h"
#include "core/codec/codec.h"
#include "spdlog/spdlog.h"

namespace latticekv {
namespace {

// A new version must code in this share of the bytes at most.
constexpr double kWorthwhile = 0.98;

// Bytes of the chunk's frame; 0 when it cannot be made.
size_t FrameBytes(const ProfileLearning::Chunk& chunk, const ModelProfile& profile) {
  EncodeOptions options;
  // Of the other presets statistics are no part.
  const bool lattice = chunk.preset != PresetId::kExact && chunk.preset != PresetId::kSeed;
  options.preset = lattice ? chunk.preset : kDefaultPreset;
  options.profile = &profile;
  options.start_position = chunk.start_position;
  options.keep = chunk.keep;
  const auto frame =
      EncodeFrame(*chunk.layout, chunk.tokens,
                  RawChunkViews(*chunk.layout, chunk.tokens, chunk.payload), options);
  return frame.ok() ? frame->size() : 0;
}

bool AnyStatistics(const ModelProfile& profile) {
  for (const auto& layer : profile.layers) {
    for (const PlaneProfile& plane : layer) {
      if (!plane.heads.empty() && plane.heads.front().has_statistics()) return true;
    }
  }
  return false;
}

}  // namespace

ProfileLearning::ProfileLearning(LayoutRegistry* layouts, const LearningOptions& options)
    : layouts_(layouts), options_(options), pool_(1, limits::kMaxCodecQueueJobs) {}

ProfileLearning::State& ProfileLearning::StateOf(const Digest& fingerprint) {
  std::unique_ptr<State>& state = states_[fingerprint];
  if (!state) {
    state = std::make_unique<State>();
    state->distance = options_.tokens;
  }
  return *state;
}

bool ProfileLearning::Wants(const Digest& fingerprint, uint32_t tokens, size_t payload_bytes) {
  if (!options_.enabled) return false;
  const auto learnable = layouts_->FindLearnable(fingerprint);
  if (!learnable) return false;
  MutexLock lock(mutex_);
  State& state = StateOf(fingerprint);
  state.stored_tokens += tokens;
  // The first version is not waited for; another registered profile begins anew.
  if (!learnable->learnt) state.next_look = 0;
  if (state.stored_tokens <= state.next_look || state.wanted_tokens >= options_.tokens) {
    return false;
  }
  if (waiting_chunks_ > 0 && waiting_bytes_ + payload_bytes > options_.max_waiting_bytes) {
    return false;
  }
  state.wanted_tokens += tokens;
  ++waiting_chunks_;
  waiting_bytes_ += payload_bytes;
  return true;
}

void ProfileLearning::Learn(Chunk chunk) {
  auto held = std::make_shared<Chunk>(std::move(chunk));
  const size_t payload_bytes = held->payload.size();
  State* state;
  {
    MutexLock lock(mutex_);
    state = &StateOf(held->fingerprint);
  }
  const bool taken =
      pool_.Submit(CodecPool::Kind::kEncode, [this, state, held, payload_bytes]() mutable {
        Process(*state, *held);
        held.reset();
        Forget(payload_bytes);
      });
  if (taken) return;
  {
    MutexLock lock(mutex_);
    state->wanted_tokens -= std::min(state->wanted_tokens, held->tokens);
  }
  Forget(payload_bytes);
}

void ProfileLearning::Forget(size_t payload_bytes) {
  MutexLock lock(mutex_);
  --waiting_chunks_;
  waiting_bytes_ -= payload_bytes;
  idle_.SignalAll();
}

void ProfileLearning::Process(State& state, const Chunk& chunk) {
  state.seen_tokens += chunk.tokens;
  const bool last = state.seen_tokens >= options_.tokens;
  const auto learnable = layouts_->FindLearnable(chunk.fingerprint);
  const bool first = learnable && !learnable->learnt;
  // Against a version in use, a candidate is tried on what it was not learnt from.
  if (last && !first) MakeVersion(state, chunk);
  const bool added = AddTo(state, chunk);
  if (last && first && added) MakeVersion(state, chunk);
  if (last) EndLook(state);
}

bool ProfileLearning::AddTo(State& state, const Chunk& chunk) {
  if (!state.statistics) {
    auto memory = options_.reserve(ChannelStatistics::MemoryBytes(*chunk.layout));
    if (!memory.ok()) return false;
    state.memory = *std::move(memory);
    state.statistics = std::make_unique<ChannelStatistics>(*chunk.layout);
  }
  state.statistics->Add(chunk.tokens, chunk.start_position,
                        RawChunkViews(*chunk.layout, chunk.tokens, chunk.payload), chunk.keep);
  MutexLock lock(mutex_);
  state.learnt_tokens += chunk.tokens;
  return true;
}

void ProfileLearning::MakeVersion(State& state, const Chunk& unseen) {
  const auto learnable = layouts_->FindLearnable(unseen.fingerprint);
  if (!learnable || !state.statistics) return;
  ModelProfile candidate = state.statistics->MakeProfile(learnable->registered.get());
  if (!AnyStatistics(candidate)) return;
  double share = 0;
  if (learnable->learnt) {
    const size_t now = FrameBytes(unseen, *learnable->learnt), then = FrameBytes(unseen, candidate);
    if (now == 0 || then == 0) return;
    share = static_cast<double>(then) / static_cast<double>(now);
    if (share > kWorthwhile) return;
  }
  const std::string hash = ToHex(candidate.decoding_hash);
  const auto version =
      layouts_->AddLearnt(unseen.fingerprint, learnable->registered.get(), std::move(candidate));
  if (!version.ok()) {
    spdlog::info("no new profile for layout {}: {}", ToHex(unseen.fingerprint),
                 std::string(version.status().message()));
  } else if (learnable->learnt) {
    spdlog::info("layout {}: version {} of its learnt profile, {}, takes {:.1f} % fewer bytes",
                 ToHex(unseen.fingerprint), *version, hash, 100 * (1 - share));
  } else {
    spdlog::info("layout {}: version {} of its learnt profile, {}", ToHex(unseen.fingerprint),
                 *version, hash);
  }
}

void ProfileLearning::EndLook(State& state) {
  state.seen_tokens = 0;
  MutexLock lock(mutex_);
  state.wanted_tokens = 0;
  state.next_look = state.stored_tokens + state.distance;
  state.distance = std::min(2 * state.distance, options_.max_relearn_tokens);
}

uint64_t ProfileLearning::LearntTokens(const Digest& fingerprint) const {
  MutexLock lock(mutex_);
  const auto it = states_.find(fingerprint);
  return it == states_.end() ? 0 : it->second->learnt_tokens;
}

void ProfileLearning::Wait() {
  MutexLock lock(mutex_);
  while (waiting_chunks_ > 0) idle_.Wait(mutex_);
}

}  // namespace latticekv
