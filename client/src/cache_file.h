// KV caches as safetensors files: `k` and `v` [layers, tokens, kv_heads, head_dim] or the planes
// that the metadata names, `token_ids`, and in the metadata what a layout needs besides
// (layout_metadata.h).
#ifndef LATTICEKV_CLIENT_SRC_CACHE_FILE_H_
#define LATTICEKV_CLIENT_SRC_CACHE_FILE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/src/safetensors.h"
#include "core/codec/codec.h"
#include "core/layout/layout.h"

namespace latticekv {

// A cache read from a file; its views refer to the file's mapping and live as long as this.
struct CacheFile {
  SafetensorsReader reader;
  Layout layout;  // layers differ in their rotary embedding at most
  uint32_t tokens = 0;
  // The first `tokens` ids of the file; empty when it has none.
  std::vector<uint32_t> token_ids;
  TensorDType token_dtype = TensorDType::kI32;
  // [layers][tokens], attention that each token received; empty when the file has none.
  std::vector<float> attention_mass;
  // Sentences for the user, about what was assumed.
  std::vector<std::string> notices;

  // [layer][plane], beginning at `first_token`.
  std::vector<std::vector<PlaneView>> Views(uint64_t first_token = 0) const;
  // From `first_token` on; INVALID_ARGUMENT without attention_mass.
  absl::StatusOr<AttentionMass> Mass(uint64_t first_token = 0) const;
  uint64_t elements() const;
  uint64_t raw_bytes() const { return layout.token_bytes() * tokens; }
};

// INVALID_ARGUMENT, saying what is missing or wrong, unless `path` holds a cache.
absl::StatusOr<CacheFile> LoadCache(const std::string& path);

// Metadata that LoadCache understands, from a layout.
SafetensorsMetadata LayoutMetadata(const Layout& layout);

// A cache being written: one tensor [layers, tokens, heads, head_dim] for each plane, and
// token_ids.
class CacheWriter {
 public:
  // INVALID_ARGUMENT when the layout's layers differ in shape, since they share a tensor.
  // `token_dtype` is kI32 or kI64; `token_ids` may be empty: no such tensor. So may
  // `keep`, 1 or 0 for each token.
  static absl::StatusOr<CacheWriter> Create(const std::string& path, const Layout& layout,
                                            uint32_t tokens, const std::vector<uint32_t>& token_ids,
                                            TensorDType token_dtype,
                                            const SafetensorsMetadata& metadata,
                                            const std::vector<uint8_t>& keep = {});
  // Where to write one layer's plane from `first_token` on: [tokens, heads, head_dim].
  MutablePlaneView View(uint32_t layer, uint32_t plane, uint64_t first_token);
  absl::Status Commit() { return writer_.Commit(); }

 private:
  CacheWriter(SafetensorsWriter writer, const Layout& layout, uint32_t tokens)
      : writer_(std::move(writer)), layout_(layout), tokens_(tokens) {}
  SafetensorsWriter writer_;
  Layout layout_;
  uint32_t tokens_;
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_CACHE_FILE_H_
