// latticekv_llama_cpp: one llama.cpp process prefills a prompt and stores its cache on a daemon,
// another restores the longest stored prefix of its own prompt and goes on from there.
#include <chrono>
#include <cmath>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "client/cli/arguments.h"
#include "client/cli/codec_flags.h"
#include "client/examples/llama_cpp/prefix_cache.h"
#include "core/base/status_macros.h"

namespace latticekv {
namespace {

using Json = nlohmann::ordered_json;
using SteadyClock = std::chrono::steady_clock;
using Tokens = std::span<const uint32_t>;

constexpr uint64_t kMaxTokens = 1 << 20;

double MsSince(SteadyClock::time_point start) {
  return std::chrono::duration<double, std::milli>(SteadyClock::now() - start).count();
}

struct Job {
  std::unique_ptr<Engine> engine;
  std::unique_ptr<PrefixCache> cache;
  std::vector<uint32_t> text;  // of the whole prompt file
  Tokens prompt;               // its beginning
  Tokens continuation;         // what follows there, to compare two caches on
  uint32_t generate = 0;
};

absl::StatusOr<llama_flash_attn_type> ReadFlashAttention(const Arguments& arguments) {
  const std::string value = arguments.Get("flash-attention", "auto");
  if (value == "auto") return LLAMA_FLASH_ATTN_TYPE_AUTO;
  if (value == "on") return LLAMA_FLASH_ATTN_TYPE_ENABLED;
  if (value == "off") return LLAMA_FLASH_ATTN_TYPE_DISABLED;
  return UsageError("--flash-attention is auto, on or off");
}

absl::StatusOr<Job> Prepare(const Arguments& arguments) {
  EngineOptions options;
  LKV_ASSIGN_OR_RETURN(options.model_path, arguments.Require("model"));
  LKV_ASSIGN_OR_RETURN(options.flash_attention, ReadFlashAttention(arguments));
  LKV_ASSIGN_OR_RETURN(const uint64_t threads, arguments.GetNumber("threads", 2, 1, 1024));
  LKV_ASSIGN_OR_RETURN(const uint64_t prompt_tokens,
                       arguments.GetNumber("prompt-tokens", 0, 2, kMaxTokens));
  LKV_ASSIGN_OR_RETURN(const uint64_t generate, arguments.GetNumber("generate", 64, 1, kMaxTokens));
  LKV_ASSIGN_OR_RETURN(const uint64_t compare, arguments.GetNumber("compare", 0, 1, 512));
  PrefixCacheOptions cache;
  LKV_ASSIGN_OR_RETURN(cache.server, arguments.Require("server"));
  LKV_ASSIGN_OR_RETURN(cache.preset, ReadPreset(arguments));
  cache.name_space = arguments.Get("namespace");
  cache.profile_path = arguments.Get("profile");

  LKV_ASSIGN_OR_RETURN(const std::string prompt_path, arguments.Require("prompt"));
  std::ifstream file(prompt_path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file || text.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("'", prompt_path, "' cannot be read"));
  }
  Job job;
  options.threads = static_cast<int>(threads);
  options.context_tokens =
      static_cast<uint32_t>(text.size() + generate + compare);  // bytes >= tokens
  LKV_ASSIGN_OR_RETURN(job.engine, Engine::Load(options));
  LKV_ASSIGN_OR_RETURN(job.text, job.engine->Tokenize(text));
  const size_t count = prompt_tokens == 0 ? job.text.size() - compare : prompt_tokens;
  if (job.text.size() < count + compare || count < 2) {
    return absl::InvalidArgumentError(absl::StrCat("'", prompt_path, "' has ", job.text.size(),
                                                   " tokens, needed are ", count + compare));
  }
  job.prompt = Tokens(job.text).first(count);
  job.continuation = Tokens(job.text).subspan(count, compare);
  job.generate = static_cast<uint32_t>(generate);
  LKV_ASSIGN_OR_RETURN(job.cache, PrefixCache::Open(*job.engine, cache));
  return job;
}

// Runs what the cache lacks of the prompt. Its last token goes alone: a restored cache has to run
// it too, and the kernels round a row of a large batch differently than a single one.
absl::Status RunPrompt(Job& job) {
  const size_t cached = job.engine->cached_tokens();
  const size_t last = job.prompt.size() - 1;
  LKV_RETURN_IF_ERROR(job.engine->Decode(job.prompt.subspan(cached, last - cached)));
  return job.engine->Decode(job.prompt.subspan(last));
}

// Log-probabilities after the prompt and after each token of the continuation.
using LogProbs = std::vector<std::vector<double>>;

std::vector<double> LogSoftmax(std::span<const float> logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float x : logits) sum += std::exp(x - top);
  std::vector<double> out;
  for (float x : logits) out.push_back(x - top - std::log(sum));
  return out;
}

// The engine has run the prompt, and maybe what it generated then.
absl::StatusOr<LogProbs> Score(Job& job) {
  LKV_RETURN_IF_ERROR(job.engine->Truncate(static_cast<uint32_t>(job.prompt.size()) - 1));
  LKV_RETURN_IF_ERROR(job.engine->Decode(job.prompt.last(1)));
  LogProbs out{LogSoftmax(job.engine->Logits())};
  LKV_RETURN_IF_ERROR(job.engine->Decode(job.continuation, /*all_logits=*/true));
  for (size_t i = 0; i < job.continuation.size(); ++i) {
    out.push_back(LogSoftmax(job.engine->Logits(i)));
  }
  return out;
}

Json Compare(const LogProbs& exact, const LogProbs& copy) {
  double divergence = 0;
  size_t same = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const std::vector<double>&p = exact[i], &q = copy[i];
    for (size_t t = 0; t < p.size(); ++t) divergence += std::exp(p[t]) * (p[t] - q[t]);
    same += std::max_element(p.begin(), p.end()) - p.begin() ==
            std::max_element(q.begin(), q.end()) - q.begin();
  }
  const auto positions = static_cast<double>(exact.size());
  return {{"positions", exact.size()},
          {"kl_nats", divergence / positions},
          {"top1_agreement", static_cast<double>(same) / positions}};
}

absl::Status StoreCommand(const Arguments& arguments) {
  LKV_ASSIGN_OR_RETURN(Job job, Prepare(arguments));
  const auto start = SteadyClock::now();
  LKV_RETURN_IF_ERROR(RunPrompt(job));
  const double prefill_ms = MsSince(start);
  const auto put_start = SteadyClock::now();
  LKV_ASSIGN_OR_RETURN(const PutResult put, job.cache->Store(job.prompt, arguments.Get("session")));
  const double store_ms = MsSince(put_start);
  LKV_ASSIGN_OR_RETURN(const std::vector<uint32_t> tokens, job.engine->Greedy(job.generate));
  std::cout << Json{{"prompt_tokens", job.prompt.size()},
                    {"first_token_ms", prefill_ms},
                    {"store_ms", store_ms},
                    {"raw_bytes", put.raw_bytes},
                    {"stored_bytes", put.stored_bytes},
                    {"tokens", tokens},
                    {"text", job.engine->Text(tokens)}}
                   .dump(2, ' ', false, Json::error_handler_t::replace)
            << "\n";
  return absl::OkStatus();
}

absl::Status RunCommand(const Arguments& arguments) {
  LKV_ASSIGN_OR_RETURN(Job job, Prepare(arguments));
  const auto start = SteadyClock::now();
  // The last token of the prompt is always run: its logits are not part of the cache.
  const auto restored =
      job.cache->Restore(job.prompt, static_cast<uint32_t>(job.prompt.size()) - 1);
  const double restore_ms = MsSince(start);
  if (!restored.ok()) {
    // An engine can always do without: the daemon is a cache.
    std::cerr << "nothing restored: " << restored.status().message() << "\n";
    LKV_RETURN_IF_ERROR(job.engine->Truncate(0));
  }
  LKV_RETURN_IF_ERROR(RunPrompt(job));
  const double first_token_ms = MsSince(start);
  LKV_ASSIGN_OR_RETURN(const std::vector<uint32_t> tokens, job.engine->Greedy(job.generate));
  Json out{{"prompt_tokens", job.prompt.size()},
           {"restored_tokens", restored.ok() ? *restored : 0},
           {"restore_ms", restore_ms},
           {"first_token_ms", first_token_ms},
           {"tokens", tokens},
           {"text", job.engine->Text(tokens)}};
  if (!job.continuation.empty()) {
    LKV_ASSIGN_OR_RETURN(const LogProbs copy, Score(job));
    LKV_RETURN_IF_ERROR(job.engine->Truncate(0));
    const auto prefill_start = SteadyClock::now();
    LKV_RETURN_IF_ERROR(RunPrompt(job));
    const double prefill_ms = MsSince(prefill_start);
    LKV_ASSIGN_OR_RETURN(const std::vector<uint32_t> expected, job.engine->Greedy(job.generate));
    LKV_ASSIGN_OR_RETURN(const LogProbs exact, Score(job));
    out["prefill"] = {
        {"first_token_ms", prefill_ms}, {"tokens", expected}, {"text", job.engine->Text(expected)}};
    out["compared"] = Compare(exact, copy);
  }
  std::cout << out.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
  return absl::OkStatus();
}

std::vector<FlagSpec> Flags() {
  return {{"model", "FILE.gguf", "the model"},
          {"server", "ADDR", "the daemon: unix:PATH or HOST:PORT"},
          {"prompt", "FILE", "a text"},
          {"prompt-tokens", "N", "take the text's first N tokens as the prompt (default: all)"},
          {"generate", "N", "greedy tokens to generate (default 64)"},
          {"compare", "N",
           "run: prefill the whole prompt as well, time it, and compare the logits over the N "
           "tokens of the text that follow the prompt"},
          {"session", "NAME", "store: name of the session"},
          {"namespace", "N", "namespace (default: default)"},
          PresetFlag(),
          ProfileFlag("model profile, made with 'latticekv profile learn'"),
          {"flash-attention", "auto|on|off", "llama.cpp's setting (default auto)"},
          {"threads", "N", "of llama.cpp (default 2)"}};
}

int Main(const std::vector<std::string>& words) {
  const CommandSpec store{"store", "", 0, 0, "Prefill a prompt, store its cache, go on.", Flags()};
  const CommandSpec run{"run",  "", 0, 0, "Restore the longest stored prefix of a prompt, go on.",
                        Flags()};
  const bool storing = !words.empty() && words[0] == store.name;
  if (!storing && (words.empty() || words[0] != run.name)) {
    std::cerr << "usage: latticekv_llama_cpp store|run FLAGS; --help for each\n";
    return 2;
  }
  const CommandSpec& spec = storing ? store : run;
  const std::vector<std::string> rest(words.begin() + 1, words.end());
  if (std::find(rest.begin(), rest.end(), "--help") != rest.end()) {
    std::cout << CommandHelp(spec);
    return 0;
  }
  const auto arguments = Arguments::Parse(spec, rest);
  absl::Status status = arguments.status();
  if (status.ok()) status = storing ? StoreCommand(*arguments) : RunCommand(*arguments);
  if (status.ok()) return 0;
  std::cerr << "latticekv_llama_cpp: " << status.message() << "\n";
  return IsUsageError(status) ? 2 : 1;
}

}  // namespace
}  // namespace latticekv

int main(int argc, char** argv) {
  return latticekv::Main(std::vector<std::string>(argv + 1, argv + argc));
}
