#include "client/examples/llama_cpp/engine.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "client/src/mapped_file.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"

namespace latticekv {
namespace {

constexpr llama_seq_id kSequence = 0;
constexpr uint32_t kBatchTokens = 512;

void LogWarnings(ggml_log_level level, const char* text, void*) {
  if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
}

absl::StatusOr<RopeSpec> RopeOf(const llama_model* model, const std::string& scaling, uint32_t dims,
                                double base) {
  // Keys whose rotation this layout cannot describe are stored as they are: larger, but right.
  const bool scaled =
      (!scaling.empty() && scaling != "none") || llama_model_rope_freq_scale_train(model) != 1.0f;
  if (scaled) return RopeSpec{};
  switch (llama_model_rope_type(model)) {
    case LLAMA_ROPE_TYPE_NONE:
      return RopeSpec{};
    case LLAMA_ROPE_TYPE_NORM:
      return RopeSpec{RopeStyle::kInterleaved, dims, base};
    case LLAMA_ROPE_TYPE_NEOX:
      return RopeSpec{RopeStyle::kNeox, dims, base};
    default:
      return absl::UnimplementedError(
          "this model's rotary embedding has several positions a token, which is not supported");
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Load(const EngineOptions& options) {
  llama_log_set(LogWarnings, nullptr);
  llama_backend_init();
  std::unique_ptr<Engine> engine(new Engine(options));
  llama_model_params model_params = llama_model_default_params();
  engine->model_ = llama_model_load_from_file(options.model_path.c_str(), model_params);
  if (engine->model_ == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", options.model_path, "' is not a model that llama.cpp loads"));
  }
  LKV_RETURN_IF_ERROR(engine->ReadLayout());
  llama_context_params params = llama_context_default_params();
  params.n_ctx = options.context_tokens;
  params.n_batch = params.n_ubatch = kBatchTokens;
  params.n_seq_max = 1;
  params.n_threads = params.n_threads_batch = options.threads;
  params.flash_attn_type = options.flash_attention;
  engine->context_ = llama_init_from_model(engine->model_, params);
  if (engine->context_ == nullptr) return absl::InternalError("llama.cpp made no context");

  const uint32_t any_token = 0;
  LKV_RETURN_IF_ERROR(engine->Decode({&any_token, 1}));
  LKV_ASSIGN_OR_RETURN(const SequenceState state, engine->GetState());
  engine->values_transposed_ = state.values_transposed();
  LKV_RETURN_IF_ERROR(engine->Truncate(0));
  return engine;
}

Engine::~Engine() {
  if (context_ != nullptr) llama_free(context_);
  if (model_ != nullptr) llama_model_free(model_);
}

std::string Engine::Meta(const std::string& key) const {
  char value[256];
  return llama_model_meta_val_str(model_, key.c_str(), value, sizeof(value)) < 0 ? "" : value;
}

absl::Status Engine::ReadLayout() {
  if (llama_model_is_recurrent(model_) || llama_model_is_hybrid(model_) ||
      llama_model_n_swa(model_) != 0 || llama_model_has_encoder(model_)) {
    return absl::UnimplementedError(
        "this model keeps more than keys and values of all tokens (recurrent state, a sliding "
        "window or an encoder), which is not supported");
  }
  const std::string architecture = Meta("general.architecture");
  const auto number = [&](const char* key, double otherwise) {
    double value = 0;
    return absl::SimpleAtod(Meta(absl::StrCat(architecture, ".", key)), &value) ? value : otherwise;
  };
  const uint32_t heads = static_cast<uint32_t>(llama_model_n_head_kv(model_));
  const auto width = static_cast<uint32_t>(llama_model_n_embd(model_) / llama_model_n_head(model_));
  const auto key_dim = static_cast<uint32_t>(number("attention.key_length", width));
  const auto value_dim = static_cast<uint32_t>(number("attention.value_length", width));
  LKV_ASSIGN_OR_RETURN(const RopeSpec rope,
                       RopeOf(model_, Meta(absl::StrCat(architecture, ".rope.scaling.type")),
                              static_cast<uint32_t>(number("rope.dimension_count", key_dim)),
                              number("rope.freq_base", 10000)));
  LKV_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(options_.model_path));
  layout_ = MakeUniformLayout(Meta("general.name"), llama_model_n_layer(model_), heads, key_dim,
                              DType::kF16, rope);
  for (LayerSpec& layer : layout_.layers) layer.planes[1].head_dim = value_dim;
  layout_.revision = ToHex(Sha256Of(file.bytes()));
  return ValidateLayout(layout_);
}

absl::StatusOr<std::vector<uint32_t>> Engine::Tokenize(const std::string& text) const {
  const llama_vocab* vocab = llama_model_get_vocab(model_);
  std::vector<llama_token> tokens(text.size() + 16);
  const int count = llama_tokenize(vocab, text.data(), static_cast<int32_t>(text.size()),
                                   tokens.data(), static_cast<int32_t>(tokens.size()),
                                   /*add_special=*/true, /*parse_special=*/false);
  if (count < 0) return absl::InvalidArgumentError("the prompt could not be tokenized");
  return std::vector<uint32_t>(tokens.begin(), tokens.begin() + count);
}

std::string Engine::Text(std::span<const uint32_t> tokens) const {
  const llama_vocab* vocab = llama_model_get_vocab(model_);
  std::string out;
  char piece[256];
  for (uint32_t token : tokens) {
    const int size = llama_token_to_piece(vocab, static_cast<llama_token>(token), piece,
                                          sizeof(piece), 0, /*special=*/true);
    if (size > 0) out.append(piece, static_cast<size_t>(size));
  }
  return out;
}

absl::Status Engine::Decode(std::span<const uint32_t> tokens, bool all_logits) {
  if (all_logits && tokens.size() > kBatchTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("logits of ", tokens.size(), " tokens at once, at most ", kBatchTokens));
  }
  if (tokens.size() > options_.context_tokens - cached_tokens_) {
    return absl::InvalidArgumentError(absl::StrCat("the context holds ", options_.context_tokens,
                                                   " tokens, there would be ",
                                                   cached_tokens_ + tokens.size()));
  }
  while (!tokens.empty()) {
    const size_t count = std::min<size_t>(kBatchTokens, tokens.size());
    const size_t logits = all_logits ? count : (count == tokens.size() ? 1 : 0);
    LKV_RETURN_IF_ERROR(DecodeBatch(tokens.first(count), logits));
    tokens = tokens.subspan(count);
  }
  return absl::OkStatus();
}

absl::Status Engine::DecodeBatch(std::span<const uint32_t> tokens, size_t logits) {
  const auto count = static_cast<int32_t>(tokens.size());
  llama_batch batch = llama_batch_init(count, 0, 1);
  batch.n_tokens = count;
  for (int32_t i = 0; i < count; ++i) {
    batch.token[i] = static_cast<llama_token>(tokens[static_cast<size_t>(i)]);
    batch.pos[i] = static_cast<llama_pos>(cached_tokens_) + i;
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = kSequence;
    batch.logits[i] = static_cast<size_t>(count - i) <= logits;
  }
  const int failed = llama_decode(context_, batch);
  llama_batch_free(batch);
  if (failed != 0) return absl::InternalError(absl::StrCat("llama_decode failed with ", failed));
  cached_tokens_ += static_cast<uint32_t>(count);
  last_batch_tokens_ = static_cast<uint32_t>(count);
  return absl::OkStatus();
}

std::span<const float> Engine::Logits() const { return Logits(last_batch_tokens_ - 1); }

std::span<const float> Engine::Logits(size_t index) const {
  const auto size = static_cast<size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model_)));
  return {llama_get_logits_ith(context_, static_cast<int32_t>(index)), size};
}

absl::StatusOr<std::vector<uint32_t>> Engine::Greedy(uint32_t count) {
  std::vector<uint32_t> out;
  while (out.size() < count) {
    const std::span<const float> logits = Logits();
    const auto likeliest = std::max_element(logits.begin(), logits.end()) - logits.begin();
    out.push_back(static_cast<uint32_t>(likeliest));
    LKV_RETURN_IF_ERROR(Decode({&out.back(), 1}));
  }
  return out;
}

absl::Status Engine::Truncate(uint32_t tokens) {
  if (!llama_memory_seq_rm(llama_get_memory(context_), kSequence, static_cast<llama_pos>(tokens),
                           -1)) {
    return absl::InternalError("llama.cpp cannot forget the end of its cache");
  }
  cached_tokens_ = std::min(cached_tokens_, tokens);
  return absl::OkStatus();
}

absl::StatusOr<SequenceState> Engine::GetState() const {
  ByteVector bytes(llama_state_seq_get_size(context_, kSequence));
  const size_t written = llama_state_seq_get_data(
      context_, reinterpret_cast<uint8_t*>(bytes.data()), bytes.size(), kSequence);
  if (written != bytes.size()) return absl::InternalError("llama.cpp gave no state");
  return SequenceState::Parse(std::move(bytes), LLAMA_STATE_SEQ_VERSION, layout_);
}

absl::StatusOr<SequenceState> Engine::NewState(uint32_t tokens) const {
  return SequenceState::Make(LLAMA_STATE_SEQ_VERSION, layout_, tokens, values_transposed_);
}

absl::Status Engine::SetState(SequenceState state) {
  const uint32_t tokens = state.tokens();
  const ByteVector bytes = state.Take();
  if (llama_state_seq_set_data(context_, reinterpret_cast<const uint8_t*>(bytes.data()),
                               bytes.size(), kSequence) != bytes.size()) {
    return absl::InternalError("llama.cpp refused the restored state");
  }
  cached_tokens_ = tokens;
  return absl::OkStatus();
}

}  // namespace latticekv
