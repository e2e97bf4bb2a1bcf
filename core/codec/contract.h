// The contract of lossy presets: how a frame's errors are counted, and what they may be.
// Internal to core/codec.
#ifndef LATTICEKV_CORE_CODEC_CONTRACT_H_
#define LATTICEKV_CORE_CODEC_CONTRACT_H_

#include <cstdint>

namespace latticekv {

struct FrameHeader;

// Squared errors are sums over vectors in units of 2^-kErrorFractionBits.
inline constexpr int kErrorFractionBits = 28;

// Most that mean squared errors may be, units of 2^-kErrorFractionBits; as made: no bound.
struct ErrorBounds {
  uint64_t key = ~uint64_t{0};
  uint64_t value = ~uint64_t{0};
};

// Measured errors of some vectors that are not stored raw: sums of their squares.
struct ErrorSums {
  uint64_t key_error_sum = 0;
  uint64_t value_error_sum = 0;
  uint32_t key_vectors = 0;
  uint32_t value_vectors = 0;

  // Sums saturate.
  void Add(const ErrorSums& e) {
    const auto add = [](uint64_t a, uint64_t b) { return a + b < a ? ~uint64_t{0} : a + b; };
    key_error_sum = add(key_error_sum, e.key_error_sum);
    value_error_sum = add(value_error_sum, e.value_error_sum);
    key_vectors += e.key_vectors;
    value_vectors += e.value_vectors;
  }
  // Whether the means are at most `bounds`.
  bool AreWithin(const ErrorBounds& bounds) const {
    const auto holds = [](uint64_t sum, uint32_t vectors, uint64_t most) {
      return vectors == 0 || sum / vectors <= most;
    };
    return holds(key_error_sum, key_vectors, bounds.key) &&
           holds(value_error_sum, value_vectors, bounds.value);
  }
};

// What the errors of a frame with this header may be over all its layers: kContractSlack of what
// its preset names. No bound of what has no contract: other stages than the lattice's, attention
// mass, keys without query energy.
ErrorBounds ContractOf(const FrameHeader& header);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CONTRACT_H_
