// An engine's cache on a LatticeKV daemon.
#ifndef LATTICEKV_CLIENT_EXAMPLES_LLAMA_CPP_PREFIX_CACHE_H_
#define LATTICEKV_CLIENT_EXAMPLES_LLAMA_CPP_PREFIX_CACHE_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "client/examples/llama_cpp/engine.h"
#include "latticekv/client.h"

namespace latticekv {

struct PrefixCacheOptions {
  std::string server;
  std::string name_space;
  PresetId preset = kDefaultPreset;
  std::string profile_path;  // model profile (docs/format/profile.md); empty: none
};

// Not thread-safe. The engine must outlive it.
class PrefixCache {
 public:
  static absl::StatusOr<std::unique_ptr<PrefixCache>> Open(Engine& engine,
                                                           const PrefixCacheOptions& options);

  // Stores what the engine has cached of `tokens`, the tokens it has run.
  absl::StatusOr<PutResult> Store(std::span<const uint32_t> tokens, const std::string& session);
  // Puts the longest stored prefix of `tokens`, at most `max_tokens` of them, into the engine.
  // Returns its tokens, 0 when nothing is stored. After an error the engine's cache is empty.
  absl::StatusOr<uint32_t> Restore(std::span<const uint32_t> tokens, uint32_t max_tokens);

 private:
  PrefixCache(Engine& engine, Client client, RegisterLayoutRequest registration, PresetId preset)
      : engine_(engine),
        client_(std::move(client)),
        registration_(std::move(registration)),
        preset_(preset) {}
  // Registers the layout with the first call that needs it: an engine starts without its daemon.
  absl::StatusOr<RegisteredLayout> Registered();

  Engine& engine_;
  Client client_;
  const RegisterLayoutRequest registration_;
  RegisteredLayout layout_;
  const PresetId preset_;
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_EXAMPLES_LLAMA_CPP_PREFIX_CACHE_H_
