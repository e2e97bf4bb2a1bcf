// Synthetic caches for tests: the same numbers on every machine, since only integers and powers of
// two make them.
#ifndef LATTICEKV_TESTS_SUPPORT_SAMPLE_CHUNK_H_
#define LATTICEKV_TESTS_SUPPORT_SAMPLE_CHUNK_H_

#include <cstdint>
#include <vector>

#include "core/codec/codec.h"

namespace latticekv::testing {

// SplitMix64 (Steele, Lea and Flood 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next();
  // Uniform in 0 .. bound - 1.
  uint32_t Below(uint32_t bound) { return static_cast<uint32_t>(Next() % bound); }
  // Bell-shaped, mean 0, variance 1, in multiples of 2^-16: a sum of twelve uniforms less six.
  float Bell();

 private:
  uint64_t state_;
};

// A chunk's raw bytes, contiguous as RawChunkViews has them.
struct SampleChunk {
  Layout layout;
  uint32_t tokens = 0;
  ByteVector raw;
  std::vector<std::vector<PlaneView>> views() const { return RawChunkViews(layout, tokens, raw); }
};

// Keys and values with channel means and spreads of their own, as real caches have.
SampleChunk MakeSampleChunk(const Layout& layout, uint32_t tokens, uint64_t seed);

// Chunks of an f32 layout with what is hard to code: zeros of both signs, a constant, denormals,
// the largest numbers, outliers, scales far apart.
std::vector<SampleChunk> MakeHardChunks(const Layout& layout, uint32_t tokens);

// Attention over six orders of magnitude, some of it none at all.
std::vector<float> RandomMass(size_t count, Random& random);

// A profile with, if asked for, rough statistics and query energy for the layout's k and v planes.
ModelProfile MakeSampleProfile(const Layout& layout, uint64_t seed, bool statistics,
                               bool energy = true);

// Whether the errors that an encoder counted in a frame are within its contract; false for what is
// no frame.
bool KeepsItsContract(ByteSpan frame);

// Element `index` of dtype at `data`, as a float.
float ElementAt(DType dtype, const std::byte* data, size_t index);

}  // namespace latticekv::testing

#endif  // LATTICEKV_TESTS_SUPPORT_SAMPLE_CHUNK_H_
