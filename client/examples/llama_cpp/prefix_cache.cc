#include "client/examples/llama_cpp/prefix_cache.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/src/profile_file.h"
#include "core/base/status_macros.h"

namespace latticekv {
namespace {

// Profile files hold rotary pairs in halves (neox), GGUF models of the llama architecture side by
// side. The canonical order of a profile is the same for both, so that a profile read for the one
// serves the other under its fingerprint.
absl::StatusOr<ByteVector> ReadProfileFor(const Layout& layout, const std::string& path) {
  Layout halves = layout;
  for (LayerSpec& layer : halves.layers) {
    RopeSpec& rope = layer.planes[0].rope;
    if (rope.style == RopeStyle::kInterleaved) rope.style = RopeStyle::kNeox;
  }
  LKV_ASSIGN_OR_RETURN(ModelProfile profile, LoadProfile(path, halves));
  profile.layout_fingerprint = LayoutFingerprint(layout);
  return SerializeProfile(profile);
}

// Writes blocks straight into a llama.cpp state. A block of which only the leading tokens are of
// use goes through memory of its own.
class StateSink : public GetSink {
 public:
  struct Slot {
    uint32_t first_cell = 0, tokens = 0, usable = 0;
  };
  StateSink(const Layout& layout, std::vector<Slot> slots, SequenceState& state)
      : layout_(layout), slots_(std::move(slots)), state_(state) {}

  absl::Status OnBlock(const ServedBlock& block) override {
    LKV_RETURN_IF_ERROR(block.miss);
    if (block.index < slots_.size() && block.block.tokens == slots_[block.index].tokens) {
      return absl::OkStatus();
    }
    return absl::DataLossError("a block has another size than it had when it was looked up");
  }
  absl::StatusOr<MutablePlaneView> Destination(uint32_t block_index, uint32_t layer,
                                               uint32_t plane) override {
    const PlaneSpec& spec = layout_.layers[layer].planes[plane];
    const Slot& slot = slots_[block_index];
    if (slot.usable == slot.tokens) return Place(slot, layer, plane);
    partial_.resize(std::max<size_t>(partial_.size(), plane + 1));
    partial_[plane].resize(spec.token_bytes() * slot.tokens);
    return ContiguousPlane(spec, partial_[plane].data());
  }
  absl::Status OnLayer(uint32_t layer) override {
    for (uint32_t p = 0; p < partial_.size(); ++p) {
      const Slot& slot = slots_.back();  // only the last one can be partial
      std::memcpy(Place(slot, layer, p).data, partial_[p].data(),
                  layout_.layers[layer].planes[p].token_bytes() * slot.usable);
    }
    return absl::OkStatus();
  }
  absl::Status OnBlockFailed(uint32_t, const absl::Status& why) override { return why; }
  absl::Status OnRestart() override { return absl::OkStatus(); }  // all is written again

 private:
  MutablePlaneView Place(const Slot& slot, uint32_t layer, uint32_t plane) {
    MutablePlaneView view = state_.Destination(layer, plane);
    view.data += slot.first_cell * view.token_stride;
    return view;
  }

  const Layout& layout_;
  const std::vector<Slot> slots_;
  SequenceState& state_;
  std::vector<ByteVector> partial_;  // [plane] of the layer under way
};

}  // namespace

absl::StatusOr<std::unique_ptr<PrefixCache>> PrefixCache::Open(Engine& engine,
                                                               const PrefixCacheOptions& options) {
  LKV_ASSIGN_OR_RETURN(Client client, Connect(options.server));
  RegisterLayoutRequest registration;
  registration.name_space = options.name_space;
  registration.layout = engine.layout();
  if (!options.profile_path.empty()) {
    LKV_ASSIGN_OR_RETURN(registration.profile,
                         ReadProfileFor(engine.layout(), options.profile_path));
  }
  return std::unique_ptr<PrefixCache>(
      new PrefixCache(engine, std::move(client), std::move(registration), options.preset));
}

absl::StatusOr<RegisteredLayout> PrefixCache::Registered() {
  if (layout_.layout == nullptr) {
    LKV_ASSIGN_OR_RETURN(layout_, client_.RegisterLayout(registration_));
  }
  return layout_;
}

absl::StatusOr<PutResult> PrefixCache::Store(std::span<const uint32_t> tokens,
                                             const std::string& session) {
  LKV_ASSIGN_OR_RETURN(const SequenceState state, engine_.GetState());
  if (tokens.size() < state.tokens()) {
    return absl::InvalidArgumentError(absl::StrCat("the engine has cached ", state.tokens(),
                                                   " tokens, only ", tokens.size(), " are named"));
  }
  PutRequest request;
  LKV_ASSIGN_OR_RETURN(request.layout, Registered());
  request.session = session;
  request.tokens = tokens.first(state.tokens());
  request.planes = state.Views();
  request.preset = preset_;
  LKV_ASSIGN_OR_RETURN(PutResult result, client_.PutPrefix(request));
  LKV_RETURN_IF_ERROR(result.status());
  return result;
}

absl::StatusOr<uint32_t> PrefixCache::Restore(std::span<const uint32_t> tokens,
                                              uint32_t max_tokens) {
  LKV_RETURN_IF_ERROR(engine_.Truncate(0));
  LKV_ASSIGN_OR_RETURN(const RegisteredLayout layout, Registered());
  LKV_ASSIGN_OR_RETURN(const LookupResult found,
                       client_.Lookup({.layout = layout, .tokens = tokens}));
  GetRequest request{.layout = layout};
  std::vector<StateSink::Slot> slots;
  uint32_t cells = 0;
  for (const LookupBlock& block : found.blocks) {
    const uint32_t usable = std::min(block.usable_tokens, max_tokens - cells);
    if (usable == 0) break;
    request.content_hashes.push_back(block.block.content_hash);
    slots.push_back({cells, block.block.tokens, usable});
    cells += usable;
    if (usable < block.block.tokens) break;
  }
  if (cells == 0) return 0u;
  LKV_ASSIGN_OR_RETURN(SequenceState state, engine_.NewState(cells));
  // A partial block has memory for one layer.
  request.unordered_layers = slots.back().usable == slots.back().tokens;
  StateSink sink(engine_.layout(), std::move(slots), state);
  LKV_RETURN_IF_ERROR(client_.Get(request, sink));
  LKV_RETURN_IF_ERROR(engine_.SetState(std::move(state)));
  return cells;
}

}  // namespace latticekv
