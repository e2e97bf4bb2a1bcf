#include "tests/support/sample_chunk.h"

#include "core/codec/cpu/float_cast.h"
#include "core/codec/frame_format.h"

namespace latticekv::testing {

uint64_t Random::Next() {
  uint64_t z = (state_ += 0x9E3779B97F4A7C15ull);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

float Random::Bell() {
  int32_t sum = 0;
  for (int i = 0; i < 12; ++i) sum += static_cast<int32_t>(Next() >> 48);
  return static_cast<float>(sum - 6 * 65536) * (1.0f / 65536);
}

SampleChunk MakeSampleChunk(const Layout& layout, uint32_t tokens, uint64_t seed) {
  SampleChunk out{layout, tokens, ByteVector(layout.token_bytes() * tokens)};
  Random random(seed);
  std::byte* at = out.raw.data();
  for (const LayerSpec& layer : layout.layers) {
    for (const PlaneSpec& plane : layer.planes) {
      const size_t row = size_t{plane.heads} * plane.head_dim;
      std::vector<float> mean(row), spread(row), values(row);
      for (size_t c = 0; c < row; ++c) {
        mean[c] = random.Bell();
        spread[c] = 1.0f / static_cast<float>(1u << random.Below(3));
      }
      for (uint32_t t = 0; t < tokens; ++t) {
        for (size_t c = 0; c < row; ++c) values[c] = mean[c] + spread[c] * random.Bell();
        StoreRow(plane.dtype, values.data(), static_cast<uint32_t>(row), at);
        at += plane.token_bytes();
      }
    }
  }
  return out;
}

namespace {

// One energy per channel from one per pair of channels (i, i + dim/2), or (2i, 2i + 1) in
// interleaved planes: what layouts with channels that are not rotated need.
std::vector<float> EnergyPerChannel(const Layout& layout, const std::vector<float>& pairs) {
  std::vector<float> out;
  size_t at = 0;
  for (const LayerSpec& layer : layout.layers) {
    for (const PlaneSpec& plane : layer.planes) {
      if (plane.role != PlaneRole::kKey) continue;
      const uint32_t half = plane.head_dim / 2;
      for (uint32_t h = 0; h < plane.heads; ++h, at += half) {
        for (uint32_t c = 0; c < plane.head_dim; ++c) {
          const bool interleaved = plane.rope.style == RopeStyle::kInterleaved;
          out.push_back(pairs[at + (interleaved ? c / 2 : c % half)]);
        }
      }
    }
  }
  return out;
}

}  // namespace

std::vector<SampleChunk> MakeHardChunks(const Layout& layout, uint32_t tokens) {
  Random random(1);
  const auto with = [&](auto value_of) {
    SampleChunk chunk{layout, tokens, ByteVector(layout.token_bytes() * tokens)};
    for (size_t i = 0; i < chunk.raw.size() / 4; ++i) {
      StoreLe<float>(&chunk.raw[4 * i], value_of(i));
    }
    return chunk;
  };
  return {
      with([](size_t) { return 0.0f; }),
      with([](size_t) { return -0.0f; }),
      with([](size_t) { return 3.5f; }),
      with([](size_t i) { return 1e-42f * static_cast<float>(i % 5); }),
      with([](size_t i) { return 3e38f * ((i * 7 % 11) < 5 ? 1.0f : -1.0f); }),
      with([&](size_t i) { return random.Bell() * (i % 997 == 0 ? 1e4f : 1.0f); }),
      with([&](size_t i) { return i % 64 == 3 ? 1e30f : random.Bell() * 1e-30f; }),
  };
}

std::vector<float> RandomMass(size_t count, Random& random) {
  std::vector<float> out;
  for (size_t i = 0; i < count; ++i) {
    out.push_back(random.Below(8) ? std::ldexp(1.0f, static_cast<int>(random.Below(20)) - 12) : 0);
  }
  return out;
}

ModelProfile MakeSampleProfile(const Layout& layout, uint64_t seed, bool statistics, bool energy) {
  Random random(seed);
  ProfileStatistics s;
  for (const LayerSpec& layer : layout.layers) {
    for (const PlaneSpec& plane : layer.planes) {
      if (plane.role == PlaneRole::kOpaque) continue;
      const bool key = plane.role == PlaneRole::kKey;
      for (uint32_t i = 0; i < plane.heads * plane.head_dim; ++i) {
        if (key && energy && i % 2 == 0) {
          s.query_energy.push_back(static_cast<float>(1u << random.Below(5)) * 0.25f);
        }
        if (!statistics) continue;
        (key ? s.key_mean : s.value_mean).push_back(0.25f * random.Bell());
        (key ? s.key_sigma : s.value_sigma).push_back(1.0f);
      }
    }
  }
  if (energy) s.query_energy = EnergyPerChannel(layout, s.query_energy);
  return *MakeProfile(layout, s);
}

bool KeepsItsContract(ByteSpan frame) {
  const auto parsed = ParseFrameHeader(frame);
  return parsed.ok() && parsed->header.errors.AreWithin(ContractOf(parsed->header));
}

float ElementAt(DType dtype, const std::byte* data, size_t index) {
  float out = 0;
  LoadRow(dtype, data + index * DTypeBytes(dtype), 1, &out);
  return out;
}

}  // namespace latticekv::testing
