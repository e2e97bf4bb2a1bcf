// A made-up model for the soak: the keys and values of a token are a function of the tokens up to
// it, as in a real one, so every process can say what any stored block must hold.
#ifndef LATTICEKV_TESTS_SOAK_SYNTHETIC_CACHE_H_
#define LATTICEKV_TESTS_SOAK_SYNTHETIC_CACHE_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "core/codec/codec.h"
#include "core/layout/layout.h"
#include "core/layout/model_profile.h"

namespace latticekv {

class SyntheticModel {
 public:
  // `name` goes into the layout, so differently named models have different fingerprints.
  static absl::StatusOr<SyntheticModel> Create(std::string name, DType dtype, RopeStyle style,
                                               bool profiled);

  const Layout& layout() const { return layout_; }
  // Null unless profiled.
  const ModelProfile* profile() const { return profiled_ ? &profile_ : nullptr; }

  // Planes [layer][plane] of tokens first .. tokens.size() - 1: contiguous [tokens, heads,
  // head_dim].
  std::vector<std::vector<ByteVector>> Planes(std::span<const uint32_t> tokens, size_t first) const;

  // What a reader must get for the chunk that holds tokens first .. tokens.size() - 1 under
  // `preset`: its planes after a local encode and decode; and the quality that the frame states.
  struct Expected {
    std::vector<std::vector<ByteVector>> planes;
    Quality quality;
  };
  absl::StatusOr<Expected> AfterCodec(std::span<const uint32_t> tokens, size_t first,
                                      PresetId preset) const;

 private:
  SyntheticModel() = default;
  Layout layout_;
  ModelProfile profile_;
  bool profiled_ = false;
};

// Views of planes as Planes() returns them.
std::vector<std::vector<PlaneView>> ViewsOf(const Layout& layout,
                                            const std::vector<std::vector<ByteVector>>& planes);

// splitmix64: a small generator whose whole state is its last output's argument.
inline uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

}  // namespace latticekv

#endif  // LATTICEKV_TESTS_SOAK_SYNTHETIC_CACHE_H_
