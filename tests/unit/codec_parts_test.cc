// The codec's building blocks against independent definitions.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>
#include <utility>

#include "core/base/crc32c.h"
#include "core/codec/cpu/e8.h"
#include "core/codec/cpu/float_cast.h"
#include "core/codec/cpu/rans.h"
#include "core/codec/fixed_point.h"
#include "core/codec/layer_codec.h"
#include "core/layout/rope.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

TEST(FloatCastTest, EveryHalfSurvivesTheRoundTrip) {
  for (uint32_t h = 0; h < 65536; ++h) {
    const float f = HalfToFloat(static_cast<uint16_t>(h));
    if (std::isnan(f)) {
      EXPECT_GT(h & 0x7FFF, 0x7C00u);
    } else if (std::isinf(f)) {
      EXPECT_EQ(FloatToHalf(f), (h & 0x8000) | 0x7BFF);  // saturates
    } else {
      EXPECT_EQ(FloatToHalf(f), h);
      const int exponent = static_cast<int>(h >> 10 & 31);
      const double mantissa = (h & 1023) / 1024.0 + (exponent ? 1 : 0);
      const double value = std::ldexp(mantissa, std::max(exponent, 1) - 15);
      EXPECT_EQ(f, h & 0x8000 ? -value : value);
    }
  }
}

TEST(FloatCastTest, RoundsToNearestEven) {
  for (uint32_t h = 0; h < 0x7BFF; ++h) {
    const float a = HalfToFloat(static_cast<uint16_t>(h));
    const float b = HalfToFloat(static_cast<uint16_t>(h + 1));
    const float middle = (a + b) / 2;  // exact in a float
    EXPECT_EQ(FloatToHalf(middle), h + (h & 1));
    EXPECT_EQ(FloatToHalf(std::nextafter(middle, 0.0f)), h);
    EXPECT_EQ(FloatToHalf(std::nextafter(middle, 1e9f)), h + 1);
  }
  EXPECT_EQ(FloatToBf16(1.00390625f), 0x3F80);  // tie, to even
  EXPECT_EQ(FloatToBf16(1.01171875f), 0x3F82);
  EXPECT_EQ(FloatToBf16(3.4e38f), 0x7F7F);
  EXPECT_EQ(FloatToBf16(-3.4e38f), 0xFF7F);
}

TEST(RopeTest, AgreesWithTheMathsLibrary) {
  for (double base : {1.0, 10000.0, 100000.0, 500000.0, 1e6}) {
    const RopeSpec rope{RopeStyle::kNeox, 128, base};
    const auto frequencies = RopeFrequencies(rope);
    for (uint32_t i = 0; i < 64; ++i) {
      const double expected = std::pow(base, -2.0 * i / 128) / (2 * M_PI);
      EXPECT_NEAR(static_cast<double>(frequencies[i]) / std::ldexp(1.0, 64), expected,
                  3e-15 * expected + 1e-19);
    }
    const uint64_t start = 131072 - 3;
    const auto table = RopeTable(rope, start, 3);
    for (uint32_t t = 0; t < 3; ++t) {
      for (uint32_t i = 0; i < 64; ++i) {
        const long double angle = static_cast<long double>(start + t) *
                                  std::pow(static_cast<long double>(base), -2.0L * i / 128);
        EXPECT_NEAR(table[t * 64 + i].cos, std::cos(angle), 1e-7);
        EXPECT_NEAR(table[t * 64 + i].sin, std::sin(angle), 1e-7);
      }
    }
  }
}

TEST(RopeTest, TablesHoldJustWhatEachPhaseGives) {
  for (uint32_t dims : {2u, 30u, 128u}) {
    const RopeSpec rope{RopeStyle::kNeox, dims, 10000.0};
    const std::vector<uint64_t> frequencies = RopeFrequencies(rope);
    const uint64_t start = 123'456'789;
    const std::vector<SinCos> table = RopeTable(rope, start, 7);
    ASSERT_EQ(table.size(), 7 * dims / 2);
    for (size_t i = 0; i < table.size(); ++i) {
      const SinCos one =
          RopeSinCos((start + i / frequencies.size()) * frequencies[i % frequencies.size()]);
      EXPECT_EQ(table[i].cos, one.cos);
      EXPECT_EQ(table[i].sin, one.sin);
    }
  }
}

TEST(RopeTest, SinCosOverAWholeTurn) {
  for (int i = 0; i < 4096; ++i) {
    const uint64_t phase = static_cast<uint64_t>(i) << 52;
    const SinCos r = RopeSinCos(phase);
    EXPECT_NEAR(r.cos, std::cos(2 * M_PI * i / 4096), 6e-8);
    EXPECT_NEAR(r.sin, std::sin(2 * M_PI * i / 4096), 6e-8);
  }
}

// Squared distance from z / 256 to q2 / 2, in 2^-16.
int64_t Distance(const int16_t* k, const int16_t* fraction, const int16_t* q2) {
  int64_t sum = 0;
  for (int i = 0; i < 8; ++i) {
    const int64_t e = k[i] * 256 + fraction[i] - 128 * q2[i];
    sum += e * e;
  }
  return sum;
}

bool IsE8(const int16_t* q2) {
  int sum = 0;
  for (int i = 0; i < 8; ++i) {
    if ((q2[i] & 1) != (q2[0] & 1)) return false;
    sum += q2[i];
  }
  return sum % 4 == 0;
}

TEST(E8Test, FindsTheNearestPoint) {
  testing::Random random(1982);
  for (int n = 0; n < 20000; ++n) {
    int16_t k[8], fraction[8], q2[8];
    for (int i = 0; i < 8; ++i) {
      k[i] = static_cast<int16_t>(static_cast<int>(random.Below(9)) - 4);
      fraction[i] = static_cast<int16_t>(n % 3 ? random.Below(256) : 64 * random.Below(4));
    }
    NearestE8(k, fraction, q2);
    ASSERT_TRUE(IsE8(q2));
    const int64_t best = Distance(k, fraction, q2);
    // The 240 shortest vectors decide: a point is nearest when none of its neighbours is nearer.
    for (int a = 0; a < 8; ++a) {
      for (int b = a + 1; b < 8; ++b) {
        for (int signs = 0; signs < 4; ++signs) {
          int16_t other[8];
          std::copy(q2, q2 + 8, other);
          other[a] = static_cast<int16_t>(other[a] + (signs & 1 ? 2 : -2));
          other[b] = static_cast<int16_t>(other[b] + (signs & 2 ? 2 : -2));
          ASSERT_GE(Distance(k, fraction, other), best);
        }
      }
    }
    for (int signs = 0; signs < 256; ++signs) {
      if (__builtin_popcount(signs) % 2) continue;
      int16_t other[8];
      for (int i = 0; i < 8; ++i) {
        other[i] = static_cast<int16_t>(q2[i] + (signs >> i & 1 ? 1 : -1));
      }
      ASSERT_GE(Distance(k, fraction, other), best);
    }
  }
}

TEST(EntropyTablesTest, FrequenciesSumUp) {
  for (int id = 0; id < kTableIds; ++id) {
    const EntropyTableHead& head = kEntropyTableHeads[id];
    int sum = 0;
    for (int i = 0; i < head.count; ++i) {
      EXPECT_GE(kEntropyFrequencies[head.at + i], 1);
      sum += kEntropyFrequencies[head.at + i];
    }
    EXPECT_EQ(sum, static_cast<int>(kProbabilityTotal)) << id;
    EXPECT_LE(-head.first, kSymbolOffset);
  }
}

TEST(RansTest, RandomSymbolsComeBack) {
  testing::Random random(64);
  for (int round = 0; round < 200; ++round) {
    const int symbols = static_cast<int>(random.Below(3000));
    struct Event {
      int lane, table, value, bits;
    };
    std::vector<Event> events;
    RansEncoder encoder;
    encoder.Start(symbols);
    for (int i = 0; i < symbols; ++i) {
      Event e{static_cast<int>(random.Below(32)), static_cast<int>(random.Below(kTableIds)), 0, 0};
      if (random.Below(4) == 0) {
        e.bits = 1 + static_cast<int>(random.Below(15));
        e.value = static_cast<int>(random.Below(1u << e.bits));
      } else {
        const auto& head = kEntropyTableHeads[e.table];
        e.value = head.first + head.stride * static_cast<int>(random.Below(head.count));
      }
      events.push_back(e);
    }
    for (size_t i = events.size(); i-- > 0;) {
      const Event& e = events[i];
      if (e.bits > 0) {
        encoder.Bits(e.lane, static_cast<uint32_t>(e.value), e.bits);
      } else {
        encoder.Symbol(e.lane, Tables().encode[e.table][e.value + kSymbolOffset]);
      }
    }
    ByteWriter out;
    encoder.Finish(out);
    RansDecoder decoder(out.bytes());
    for (const Event& e : events) {
      const int got = e.bits ? static_cast<int>(decoder.Bits(e.lane, e.bits))
                             : decoder.Symbol(e.lane, Tables().decode[e.table]);
      ASSERT_EQ(got, e.value);
    }
    EXPECT_TRUE(decoder.Finished());
    if (out.size() > 128) {
      RansDecoder cut(ByteSpan(out.bytes()).first(out.size() - 2));
      for (const Event& e : events) {
        e.bits ? static_cast<void>(cut.Bits(e.lane, e.bits))
               : static_cast<void>(cut.Symbol(e.lane, Tables().decode[e.table]));
      }
      EXPECT_FALSE(cut.Finished());
    }
  }
}

TEST(FixedPointTest, IntegerLogarithm) {
  testing::Random random(5);
  for (int i = 0; i < 10000; ++i) {
    const uint64_t v = (random.Next() >> random.Below(63)) | 1;
    EXPECT_NEAR(Log2Sixteenths(v), 16 * std::log2(static_cast<double>(v)), 0.5001);
  }
}

TEST(FixedPointTest, StepsAndMeans) {
  for (int i = -kMaxStepIndex; i <= kMaxStepIndex; ++i) {
    EXPECT_NEAR(StepFloat(i), std::exp2(i / 4.0), 1e-7 * std::exp2(i / 4.0));
  }
  for (int step = -300; step < 300; step += 7) {
    for (int mean : {-1000000, -12345, 0, 1, 77, 999999}) {
      const double exact = std::ldexp(mean, -12) * 4 / std::exp2(step / 16.0);
      if (std::abs(exact) > kMaxMeanQuarters) continue;
      EXPECT_NEAR(MeanInQuarterSteps(mean, -12, step), exact, 0.5 + 1e-6 * std::abs(exact));
    }
  }
}

TEST(Crc32cTest, KnownValueAndAllVersions) {
  testing::Random random(3);
  ByteVector bytes(20000);  // three times the longest run that a version takes at once
  for (auto& b : bytes) b = static_cast<std::byte>(random.Next());
  for (const Crc32cFunction version : Crc32cVersions()) {
    EXPECT_EQ(version(AsBytes("123456789"), 0), 0xE3069283u);
    for (size_t n = 0; n < bytes.size(); n += n < 1100 ? 37 : 1013) {
      const ByteSpan a = ByteSpan(bytes).first(n), b = ByteSpan(bytes).subspan(n);
      EXPECT_EQ(version(a, 0), Crc32cPortable(a));
      EXPECT_EQ(version(b, version(a, 0)), Crc32cPortable(bytes));
    }
  }
  EXPECT_EQ(Crc32c(bytes), Crc32cPortable(bytes));
}

// Planes of every shape, read from and written to memory with gaps; sign and exponent bytes that
// zstd packs and bytes that it does not. The split into bytes is that of a plain loop.
TEST(ExactLayerTest, EveryShapeAndStride) {
  std::mt19937_64 random(5);
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
    for (const uint32_t head_dim : {1u, 3u, 15u, 16u, 17u, 40u, 128u}) {
      for (const uint32_t heads : {1u, 3u}) {
        const size_t gap = random() % 3 * 2;
        LayerSpec layer;
        PlaneSpec& plane = layer.planes.emplace_back();
        plane.dtype = dtype;
        plane.heads = heads;
        plane.head_dim = head_dim;
        const uint32_t tokens = 1 + static_cast<uint32_t>(random() % 40);
        const size_t width = DTypeBytes(dtype), vector = head_dim * width;
        PlaneView from;
        from.head_stride = vector + gap;
        from.token_stride = heads * from.head_stride + gap;
        ByteVector source(tokens * from.token_stride);
        const bool packs = random() % 2 == 0;
        for (size_t i = 0; i < source.size(); ++i) {
          source[i] = static_cast<std::byte>(packs && i % width == width - 1 ? 60 + random() % 2
                                                                             : random());
        }
        from.data = source.data();
        const ByteVector coded = EncodeExactLayer(layer, tokens, {from});
        ByteVector target(source.size(), std::byte{0xEE});
        MutablePlaneView to{target.data(), from.token_stride, from.head_stride};
        ASSERT_TRUE(DecodeExactLayer(layer, tokens, coded, {to}).ok());
        ByteVector whole(tokens * heads * vector);
        ASSERT_TRUE(
            DecodeExactLayer(layer, tokens, coded, {ContiguousPlane(plane, whole.data())}).ok());
        std::vector<bool> used(source.size());
        for (size_t t = 0, n = 0; t < tokens; ++t) {
          for (size_t h = 0; h < heads; ++h) {
            const size_t at = t * from.token_stride + h * from.head_stride;
            for (size_t i = 0; i < vector; ++i, ++n) {
              ASSERT_EQ(target[at + i], source[at + i]) << head_dim << " " << t << " " << h;
              ASSERT_EQ(whole[n], source[at + i]);
              used[at + i] = true;
            }
          }
        }
        for (size_t i = 0; i < target.size(); ++i) {
          if (used[i]) continue;
          ASSERT_EQ(target[i], std::byte{0xEE}) << "wrote into a gap";
        }
        // Contiguous input makes the same bytes.
        EXPECT_EQ(
            EncodeExactLayer(layer, tokens, {ContiguousPlane(plane, std::as_const(whole).data())}),
            coded);
        // Where nothing packs, the bytes of equal significance lie together as they are.
        if (packs || tokens * heads * head_dim < 16) continue;
        ByteReader in(coded);
        for (size_t b = 0; b < width; ++b) {
          const size_t size = in.Get<uint32_t>();
          const ByteSpan body = in.GetBytes(size);
          if (size != whole.size() / width) continue;  // chance
          for (size_t i = 0; i < size; ++i) ASSERT_EQ(body[i], whole[i * width + b]);
        }
      }
    }
  }
}

}  // namespace
}  // namespace latticekv
