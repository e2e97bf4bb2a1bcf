// What the bytes of a KV cache mean: model, layers, planes, heads, dtype, rotary embedding.
#ifndef LATTICEKV_CORE_LAYOUT_LAYOUT_H_
#define LATTICEKV_CORE_LAYOUT_LAYOUT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "core/base/sha256.h"

namespace latticekv {

enum class DType : uint8_t { kF16 = 1, kBF16 = 2, kF32 = 3 };
enum class PlaneRole : uint8_t { kKey = 1, kValue = 2, kOpaque = 3 };
// kNone: no rotary embedding. kNeox: channel i pairs with i + rotary_dims/2. kInterleaved: channel
// 2i pairs with 2i + 1.
enum class RopeStyle : uint8_t { kNone = 0, kNeox = 1, kInterleaved = 2 };

size_t DTypeBytes(DType dtype);
std::string_view DTypeName(DType dtype);  // "f16", "bf16", "f32"
absl::StatusOr<DType> ParseDType(std::string_view name);

// How frequencies were changed for contexts longer than the model was first trained on.
enum class RopeScalingKind : uint8_t {
  kNone = 0,
  kLinear = 1,      // positions divided by a factor (Chen et al. 2023)
  kDynamicNtk = 2,  // a larger base for longer sequences
  kLlama3 = 3,      // long wavelengths divided by a factor, short ones kept
  kYarn = 4,        // Peng et al. 2023
};

// Fields as a model's published configuration gives them, so that a fingerprint never depends on
// arithmetic. Those that `kind` does not use are zero.
struct RopeScaling {
  RopeScalingKind kind = RopeScalingKind::kNone;
  double factor = 0;
  uint32_t original_positions = 0;  // dynamic NTK, llama3, yarn: of the unscaled model
  // Dynamic NTK: length of sequence that the engine computed the base for, not below
  // original_positions. Keys of another length are other keys, so it belongs to the layout.
  uint32_t sequence_positions = 0;
  double low_freq_factor = 0, high_freq_factor = 0;  // llama3
  double beta_fast = 0, beta_slow = 0;               // yarn
  bool truncate = false;  // yarn: bounds of the ramp rounded outwards to whole pairs
  // yarn; 0: not given. Keys carry the factor (RopeAttentionFactor), the sine tables do not.
  double attention_factor = 0, mscale = 0, mscale_all_dim = 0;
  bool operator==(const RopeScaling&) const = default;
};

// Rotary embedding of the first `rotary_dims` channels of every head: pair i of position p is
// rotated by p * base^(-2i/rotary_dims) (Su et al. 2021, RoFormer), scaled.
struct RopeSpec {
  RopeStyle style = RopeStyle::kNone;
  uint32_t rotary_dims = 0;
  double base = 10000.0;
  RopeScaling scaling;
  bool operator==(const RopeSpec&) const = default;
};

struct PlaneSpec {
  std::string name;  // "k", "v"
  PlaneRole role = PlaneRole::kOpaque;
  uint32_t heads = 0;
  uint32_t head_dim = 0;
  DType dtype = DType::kF16;
  RopeSpec rope;  // of key planes
  bool operator==(const PlaneSpec&) const = default;

  // Bytes of one token of this plane: heads * head_dim * dtype.
  size_t token_bytes() const { return size_t{heads} * head_dim * DTypeBytes(dtype); }
};

struct LayerSpec {
  std::vector<PlaneSpec> planes;
  bool operator==(const LayerSpec&) const = default;

  // Bytes of one token over all planes.
  size_t token_bytes() const;
};

struct Layout {
  std::string model;
  std::string revision;
  std::vector<LayerSpec> layers;
  bool operator==(const Layout&) const = default;

  // Bytes of one token over all layers and planes.
  size_t token_bytes() const;
};

// INVALID_ARGUMENT, saying which layer, plane and limit, unless every codec stage accepts `layout`.
absl::Status ValidateLayout(const Layout& layout);

// Canonical bytes (docs/format/layout.md): equal layouts give equal bytes.
ByteVector SerializeLayout(const Layout& layout);
// Inverse of SerializeLayout, validated. DATA_LOSS on malformed bytes.
absl::StatusOr<Layout> ParseLayout(ByteSpan bytes);

// SHA-256 of SerializeLayout(layout).
Digest LayoutFingerprint(const Layout& layout);

// Channel of the layout for each canonical channel. Canonical order is neox: first the first halves
// of all rotary pairs, then the second halves, then channels that are not rotated; identity for
// neox.
std::vector<uint32_t> CanonicalChannels(const PlaneSpec& plane);

// A layout of `layers` equal layers with planes "k" and "v".
Layout MakeUniformLayout(std::string model, uint32_t layers, uint32_t kv_heads, uint32_t head_dim,
                         DType dtype, RopeSpec rope);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_LAYOUT_LAYOUT_H_
