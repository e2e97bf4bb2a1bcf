// One llama.cpp model with one sequence.
#ifndef LATTICEKV_CLIENT_EXAMPLES_LLAMA_CPP_ENGINE_H_
#define LATTICEKV_CLIENT_EXAMPLES_LLAMA_CPP_ENGINE_H_

#include <llama.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/examples/llama_cpp/sequence_state.h"
#include "core/layout/layout.h"

namespace latticekv {

struct EngineOptions {
  std::string model_path;  // GGUF
  uint32_t context_tokens = 2048;
  int threads = 2;
  llama_flash_attn_type flash_attention = LLAMA_FLASH_ATTN_TYPE_AUTO;
};

// Not thread-safe.
class Engine {
 public:
  // Loads the model, and decodes one token, so that what is timed later finds the weights in memory
  // and the state's format is known to be one that SequenceState reads. UNIMPLEMENTED for models
  // whose state is more than keys and values of every layer.
  static absl::StatusOr<std::unique_ptr<Engine>> Load(const EngineOptions& options);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // What the cache's bytes mean. The revision is the SHA-256 of the model file: two models that
  // share a name never share a cache.
  const Layout& layout() const { return layout_; }
  uint32_t max_tokens() const { return options_.context_tokens; }

  absl::StatusOr<std::vector<uint32_t>> Tokenize(const std::string& text) const;
  std::string Text(std::span<const uint32_t> tokens) const;

  // Runs `tokens` at the positions after those in the cache. Only the last one's logits are kept,
  // or (all_logits) everyone's.
  absl::Status Decode(std::span<const uint32_t> tokens, bool all_logits = false);
  // Of the last Decode: those of its last token, or (after all_logits) of its `index`th.
  std::span<const float> Logits() const;
  std::span<const float> Logits(size_t index) const;
  // Appends `count` tokens, each the likeliest; the first follows from Logits().
  absl::StatusOr<std::vector<uint32_t>> Greedy(uint32_t count);

  uint32_t cached_tokens() const { return cached_tokens_; }
  // Forgets the cache from position `tokens` on.
  absl::Status Truncate(uint32_t tokens);

  absl::StatusOr<SequenceState> GetState() const;
  // A state of `tokens` cells to fill and give to SetState.
  absl::StatusOr<SequenceState> NewState(uint32_t tokens) const;
  // Replaces the cache.
  absl::Status SetState(SequenceState state);

 private:
  explicit Engine(const EngineOptions& options) : options_(options) {}
  absl::Status ReadLayout();
  // Keeps the logits of the last `logits` tokens.
  absl::Status DecodeBatch(std::span<const uint32_t> tokens, size_t logits);
  std::string Meta(const std::string& key) const;

  EngineOptions options_;
  llama_model* model_ = nullptr;
  llama_context* context_ = nullptr;
  Layout layout_;
  bool values_transposed_ = false;
  uint32_t cached_tokens_ = 0;
  uint32_t last_batch_tokens_ = 0;
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_EXAMPLES_LLAMA_CPP_ENGINE_H_
