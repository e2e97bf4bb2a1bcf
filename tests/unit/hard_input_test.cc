// Input that no model should make and some do: the codec never crashes, what is not stored exact
// keeps the contract, and a frame is never more than 1 % larger than its input.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "core/codec/codec.h"
#include "core/codec/cpu/float_cast.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

using testing::ElementAt;
using testing::Random;
using testing::SampleChunk;

constexpr uint32_t kDim = 64, kTokens = 100, kHeads = 2;

Layout MakeLayout(DType dtype) {
  return MakeUniformLayout("hard", 1, kHeads, kDim, dtype, {RopeStyle::kNeox, kDim, 10000.0});
}

// value(plane, token, head, channel)
using Value = std::function<float(int, uint32_t, uint32_t, uint32_t)>;

SampleChunk MakeChunk(DType dtype, const Value& value) {
  const Layout layout = MakeLayout(dtype);
  SampleChunk chunk{layout, kTokens, ByteVector(layout.token_bytes() * kTokens)};
  std::byte* at = chunk.raw.data();
  for (int p = 0; p < 2; ++p) {
    for (uint32_t t = 0; t < kTokens; ++t) {
      for (uint32_t h = 0; h < kHeads; ++h) {
        float row[kDim];
        for (uint32_t c = 0; c < kDim; ++c) row[c] = value(p, t, h, c);
        // As an engine casts, infinities included.
        for (uint32_t c = 0; c < kDim; ++c, at += DTypeBytes(dtype)) {
          if (dtype == DType::kF32) {
            StoreLe<float>(at, row[c]);
          } else if (!std::isfinite(row[c])) {
            const uint16_t inf = dtype == DType::kF16 ? 0x7C00 : 0x7F80;
            StoreLe<uint16_t>(at, std::isnan(row[c]) ? inf | 1 : inf);
          } else {
            StoreRow(dtype, &row[c], 1, at);
          }
        }
      }
    }
  }
  return chunk;
}

// Relative error that the cast to a dtype may add.
double Cast(DType dtype) {
  return dtype == DType::kBF16 ? 0x1p-8 : dtype == DType::kF16 ? 0x1p-11 : 0x1p-22;
}

struct Measured {
  double noise = 0, value = 0;  // rms over vectors that did not come back bit for bit
  double cast_noise = 0;        // of the keys' dtype alone
  size_t exact = 0, vectors = 0, bytes = 0;
};

Measured RoundTrip(const SampleChunk& chunk, EncodeOptions options) {
  Measured out;
  options.start_position = 4096;
  const auto frame = EncodeFrame(chunk.layout, chunk.tokens, chunk.views(), options);
  EXPECT_TRUE(frame.ok()) << frame.status();
  if (!frame.ok()) return out;
  out.bytes = frame->size();
  EXPECT_LE(static_cast<double>(frame->size()), 1.01 * static_cast<double>(chunk.raw.size()));
  EXPECT_TRUE(testing::KeepsItsContract(*frame));
  ByteVector raw(chunk.raw.size(), std::byte{0xA5});
  const auto decoder = FrameDecoder::Open(*frame, chunk.layout, options.profile);
  EXPECT_TRUE(decoder.ok()) << decoder.status();
  const absl::Status status = DecodeFrame(*decoder, chunk.layout, raw);
  EXPECT_TRUE(status.ok()) << status;
  const DType dtype = chunk.layout.layers[0].planes[0].dtype;
  const size_t bytes = kDim * DTypeBytes(dtype), vectors = chunk.raw.size() / bytes;
  double sums[2] = {0, 0};
  size_t counts[2] = {0, 0};
  double keys = 0;
  for (size_t v = 0; v < vectors; ++v) {
    const std::byte *a = &chunk.raw[v * bytes], *b = &raw[v * bytes];
    ++out.vectors;
    if (std::equal(a, a + bytes, b)) {
      ++out.exact;
      continue;
    }
    const int p = v >= vectors / 2;
    const size_t head = v % kHeads;
    double e = 0, n = 0;
    for (uint32_t c = 0; c < kDim; ++c) {
      const double x = ElementAt(dtype, a, c), y = ElementAt(dtype, b, c);
      EXPECT_TRUE(std::isfinite(x)) << "a vector with a value that is not finite was changed";
      EXPECT_TRUE(std::isfinite(y));
      const double w = p == 0 && options.profile
                           ? options.profile->layers[0][0].heads[head].query_energy[c]
                           : 1.0;
      e += w * (y - x) * (y - x);
      n += w * x * x;
    }
    sums[p] += p == 0 && options.profile ? e / kDim : e > 0 ? e / n : 0;
    if (p == 0 && options.profile) keys += n / kDim;
    ++counts[p];
  }
  if (counts[0]) out.cast_noise = Cast(dtype) * std::sqrt(keys / static_cast<double>(counts[0]));
  if (counts[0]) out.noise = std::sqrt(sums[0] / static_cast<double>(counts[0]));
  if (counts[1]) out.value = std::sqrt(sums[1] / static_cast<double>(counts[1]));
  return out;
}

struct Case {
  const char* name;
  Value value;
};

std::vector<Case> Cases(Random& random) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const auto bell = [&random] { return random.Bell(); };
  return {
      {"all zero", [](int, uint32_t, uint32_t, uint32_t) { return 0.0f; }},
      {"minus zero", [](int, uint32_t, uint32_t, uint32_t) { return -0.0f; }},
      {"one constant", [](int, uint32_t, uint32_t, uint32_t) { return 3.5f; }},
      {"constant channels",
       [=](int, uint32_t, uint32_t, uint32_t c) { return c % 3 ? bell() : static_cast<float>(c); }},
      {"constant vectors", [](int, uint32_t, uint32_t, uint32_t c) { return 0.1f * c; }},
      {"zero tokens",
       [=](int, uint32_t t, uint32_t, uint32_t) { return t % 4 == 1 ? 0.0f : bell(); }},
      {"a zero head", [=](int, uint32_t, uint32_t h, uint32_t) { return h ? bell() : 0.0f; }},
      {"denormals of f32", [](int, uint32_t t, uint32_t,
                              uint32_t c) { return 1e-42f * static_cast<float>(t * c % 7); }},
      {"denormals of f16",
       [=](int, uint32_t, uint32_t, uint32_t) { return std::ldexp(bell(), -20); }},
      {"denormals beside numbers",
       [=](int, uint32_t, uint32_t, uint32_t c) { return c % 2 ? bell() : 1e-41f; }},
      {"infinities and NaN in some tokens",
       [=](int, uint32_t t, uint32_t, uint32_t c) {
         if (t % 10 == 3 && c == 5) return kInf;
         return t % 10 == 7 && c == 60 ? std::nanf("") : bell();
       }},
      {"only infinities", [=](int, uint32_t, uint32_t, uint32_t) { return kInf; }},
      {"outliers of 1e4 sigma",
       [=](int, uint32_t t, uint32_t, uint32_t c) {
         return bell() * ((t * 7 + c) % 997 == 0 ? 1e4f : 1.0f);
       }},
      {"an outlier channel",
       [=](int, uint32_t, uint32_t, uint32_t c) { return bell() * (c == 9 ? 1e4f : 1.0f); }},
      {"beyond f16", [=](int, uint32_t, uint32_t, uint32_t) { return 1e6f * bell(); }},
      {"the largest floats", [](int, uint32_t t, uint32_t,
                                uint32_t c) { return (t * 5 + c * 7) % 11 < 5 ? 3e38f : -3e38f; }},
      {"many scales",
       [=](int, uint32_t t, uint32_t, uint32_t) { return std::ldexp(bell(), int(t % 60) - 30); }},
      {"large means",
       [=](int, uint32_t, uint32_t, uint32_t c) { return 1000.0f * (c % 5) + 0.01f * bell(); }},
      // All tokens alike share one draw of the lattice's error instead of a mean over many.
      {"tokens alike", [](int, uint32_t, uint32_t, uint32_t c) { return 0.37f * (c * 7 % 64); }},
      {"tokens alike in steps of eight",
       [](int, uint32_t t, uint32_t, uint32_t c) { return 1.0f + 0.21f * (t / 8 * 5 + c % 3); }},
  };
}

TEST(HardInputTest, TheContractHoldsForWhatIsNotExactAndFramesNeverGrow) {
  const ModelProfile profile_of[] = {testing::MakeSampleProfile(MakeLayout(DType::kF16), 3, true),
                                     testing::MakeSampleProfile(MakeLayout(DType::kBF16), 3, true),
                                     testing::MakeSampleProfile(MakeLayout(DType::kF32), 3, true)};
  Random random(20260101);
  for (const Case& c : Cases(random)) {
    int index = 0;
    for (DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
      const SampleChunk chunk = MakeChunk(dtype, c.value);
      const ModelProfile& profile = profile_of[index++];
      for (const Preset& preset : AllPresets()) {
        for (int mode = 0; mode < 4; ++mode) {
          SCOPED_TRACE(std::string(c.name) + " " + std::string(DTypeName(dtype)) + " " +
                       std::string(preset.name) + " mode " + std::to_string(mode));
          EncodeOptions options;
          options.preset = preset.id;
          if (mode > 0) {
            options.profile = &profile;
            options.stats = static_cast<StatsMode>(mode - 1);
          }
          const Measured m = RoundTrip(chunk, options);
          if (preset.id == PresetId::kExact) {
            EXPECT_EQ(m.exact, m.vectors);
            continue;
          }
          // What the encoder itself counts are errors with the cast, rounded to 1/256 step.
          constexpr double kMost = kContractSlack + 0.001;
          EXPECT_LE(m.value, kMost * preset.value_error);
          if (mode > 0) {
            EXPECT_LE(m.noise, kMost * preset.logit_noise);
          }
        }
      }
      for (const bool groups : {false, true}) {
        SCOPED_TRACE(std::string(c.name) + " seed " + std::string(DTypeName(dtype)));
        EncodeOptions options;
        options.preset = PresetId::kSeed;
        options.seed = {3, 3, groups, true};
        const Measured m = RoundTrip(chunk, options);
        EXPECT_LT(m.noise, 0.5);
        EXPECT_LT(m.value, 0.5);
      }
    }
  }
}

// Outliers are stored beside the rest, so the size follows their number and no cliff exists.
TEST(HardInputTest, TheRatioDegradesSmoothly) {
  const auto bytes_with = [](uint32_t outliers_in_1000) {
    Random random(7);
    const SampleChunk chunk = MakeChunk(DType::kF16, [&](int, uint32_t t, uint32_t h, uint32_t) {
      // Whole vectors far off, spread evenly over the tokens.
      const bool far = (t * 2 + h) * 37 % 1000 < outliers_in_1000;
      return random.Bell() * (far ? 1e4f : 1.0f);
    });
    EncodeOptions options;
    options.preset = PresetId::kBalanced;
    return RoundTrip(chunk, options).bytes;
  };
  const size_t raw = MakeLayout(DType::kF16).token_bytes() * kTokens;
  size_t last = bytes_with(0);
  const size_t first = last;
  for (uint32_t share : {10u, 30u, 100u, 300u, 600u, 1000u}) {
    const size_t now = bytes_with(share);
    // Never more than storing the outliers raw beside what there was, with a tenth to spare.
    const double bound = static_cast<double>(first) + 1.1 * static_cast<double>(raw) * share / 1000;
    EXPECT_LT(static_cast<double>(now), bound + 600) << share;
    last = now;
  }
  // When all of it is large, it is not an outlier any more.
  EXPECT_LT(static_cast<double>(last), 1.3 * static_cast<double>(first) + 600);
}

}  // namespace
}  // namespace latticekv
