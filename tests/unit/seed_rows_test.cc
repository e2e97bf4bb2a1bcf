// What the threads of the seed stages' device code do, run on the host in every build: the scalar
// codec's points, scales, errors and bytes. How plans use it: tests/gpu/cuda_seed_test.cc.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "core/codec/cuda/arena_layout.h"
#include "core/codec/cuda/seed_units.h"
#include "core/codec/frame_format.h"
#include "tests/support/host_seed_kernels.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

using testing::MakeSampleChunk;
using testing::SampleChunk;

constexpr uint32_t kBlockTokens = 16, kFirst = 5;
constexpr uint64_t kStart = 1000;
constexpr std::byte kUntouched{0x5A};

// A plane in a paged cache whose blocks lie backwards.
struct Paged {
  Paged(const PlaneSpec& spec, uint32_t tokens, bool hnd) {
    const size_t vector = spec.head_dim * DTypeBytes(spec.dtype);
    const uint32_t blocks = (kFirst + tokens + kBlockTokens - 1) / kBlockTokens;
    plane.token_stride = hnd ? vector : spec.heads * vector;
    plane.head_stride = hnd ? kBlockTokens * vector : vector;
    plane.block_stride = kBlockTokens * spec.heads * vector;
    memory.assign(blocks * plane.block_stride, kUntouched);
    plane.data_dev = memory.data();
    for (uint32_t t = kFirst; t < kFirst + tokens; ++t) {
      places.push_back({blocks - 1 - t / kBlockTokens, t % kBlockTokens});
    }
  }
  std::byte* Vector(uint32_t token, uint32_t head) {
    const cuda::TokenPlace at = places[token];
    return memory.data() + at.block * plane.block_stride + at.slot * plane.token_stride +
           head * plane.head_stride;
  }

  ByteVector memory;
  DevicePlane plane;
  std::vector<cuda::TokenPlace> places;
};

// Tasks for the heads of one plane and what they need, as plans upload them.
struct Tasks {
  cuda::SeedLaunch Launch(const ByteVector& results) {
    const uint64_t results_at = Place(results, arena);
    const uint64_t units_at = Place(units, arena);
    cuda::SeedLaunch launch = SeedLaunchOf(units, units_at);
    launch.results_at = results_at;
    launch.arena_dev = reinterpret_cast<unsigned char*>(arena.data());
    launch.blocks = 3;
    return launch;
  }
  ByteVector arena;
  std::vector<cuda::SeedUnit> units;
};

// `coded` and `decoded`: what the scalar codec made of the plane. Returns the sum of errors.
uint64_t ExpectSamePlane(const SampleChunk& chunk, const std::vector<float>* energy, size_t layer,
                         size_t p, bool hnd, const SeedPlane& coded, ByteSpan decoded) {
  const PlaneSpec& spec = chunk.layout.layers[layer].planes[p];
  const uint32_t dim = spec.head_dim, tokens = chunk.tokens, groups = dim / coded.shape.Group(dim);
  const size_t vector = dim * DTypeBytes(spec.dtype);
  const ChunkRope rope(chunk.layout, kStart, tokens);
  const SinCos* angles = rope.Table(spec.rope);
  const size_t angle_count = angles == nullptr ? 0 : size_t{tokens} * (spec.rope.rotary_dims / 2);
  Paged source(spec, tokens, hnd), output(spec, tokens, hnd);
  Tasks encode, decode;
  const uint64_t scales_at = Place(coded.scales, decode.arena);
  const uint64_t points_at = Place(coded.points, decode.arena);
  size_t row = 0;
  for (uint32_t h = 0; h < spec.heads; ++h) {
    for (uint32_t t = 0; t < tokens; ++t) {
      const std::byte* from = chunk.views()[layer][p].data + (t * spec.heads + h) * vector;
      std::copy_n(from, vector, source.Vector(t, h));
    }
    for (Tasks* tasks : {&encode, &decode}) {
      Paged& memory = tasks == &encode ? source : output;
      cuda::SeedUnit unit = NewSeedUnit(spec, memory.plane, h, coded.shape);
      std::vector<uint8_t> order;
      for (uint32_t t = 0; t < tokens; ++t) {
        if (!coded.raw[h][t]) order.push_back(static_cast<uint8_t>(t));
      }
      unit.rows = static_cast<uint16_t>(order.size());
      unit.places_at = Place(memory.places, tasks->arena);
      unit.order_at = Place(order, tasks->arena);
      unit.rope_at = Place(std::vector<SinCos>(angles, angles + angle_count), tasks->arena);
      if (tasks == &encode) {
        unit.has_energy = energy != nullptr;
        if (energy != nullptr) unit.energy_at = Place(*energy, tasks->arena);
        unit.scales_at = Place(std::vector<uint16_t>(order.size() * groups), tasks->arena);
        unit.points_at = Place(std::vector<int8_t>(order.size() * dim), tasks->arena);
      } else {
        unit.scales_at = scales_at + sizeof(uint16_t) * row * groups;
        unit.points_at = points_at + row * dim;
      }
      tasks->units.push_back(unit);
    }
    row += coded.Rows(h);
  }
  const cuda::SeedLaunch encoding =
      encode.Launch(ByteVector(spec.heads * sizeof(cuda::SeedResult)));
  testing::RunSeedEncode(encoding);
  const cuda::SeedLaunch decoding = decode.Launch(ByteVector(sizeof(uint32_t)));
  testing::RunSeedDecode(decoding);
  EXPECT_EQ(LoadLe<uint32_t>(decode.arena.data() + decoding.results_at), 0u);

  uint64_t errors = 0;
  row = 0;
  for (uint32_t h = 0; h < spec.heads; ++h) {
    const cuda::SeedUnit& unit = encode.units[h];
    const std::byte* scales = encode.arena.data() + unit.scales_at;
    const std::byte* points = encode.arena.data() + unit.points_at;
    EXPECT_TRUE(std::equal(points, points + unit.rows * dim,
                           reinterpret_cast<const std::byte*>(coded.points.data()) + row * dim));
    for (size_t i = 0; i < unit.rows * groups; ++i) {
      EXPECT_EQ(LoadLe<uint16_t>(scales + 2 * i), coded.scales[row * groups + i]);
    }
    row += unit.rows;
    const auto result = LoadLe<cuda::SeedResult>(encode.arena.data() + encoding.results_at +
                                                 h * sizeof(cuda::SeedResult));
    EXPECT_EQ(result.raw_rows, 0u);
    errors += result.error_sum;
    for (uint32_t t = 0; t < tokens; ++t) {
      const std::byte* got = output.Vector(t, h);
      EXPECT_TRUE(
          coded.raw[h][t]
              ? std::all_of(got, got + vector, [](std::byte b) { return b == kUntouched; })
              : std::equal(got, got + vector, decoded.begin() + (t * spec.heads + h) * vector))
          << "head " << h << " token " << t;
    }
  }
  return errors;
}

void ExpectSame(const Layout& layout, uint32_t tokens, const SeedOptions& seed, bool profiled) {
  const SampleChunk chunk = MakeSampleChunk(layout, tokens, tokens);
  const ModelProfile profile = testing::MakeSampleProfile(layout, 3, false);
  EncodeOptions options;
  options.preset = PresetId::kSeed;
  options.seed = seed;
  options.start_position = kStart;
  if (profiled) options.profile = &profile;
  if (tokens > 10) options.exact_tokens = {0, 7};  // rows that are not coded
  const auto frame = EncodeFrame(layout, tokens, chunk.views(), options);
  ASSERT_TRUE(frame.ok()) << frame.status();
  const auto decoder = FrameDecoder::Open(*frame, layout, nullptr);
  ASSERT_TRUE(decoder.ok()) << decoder.status();
  ByteVector raw(chunk.raw.size());
  ASSERT_TRUE(DecodeFrame(*decoder, layout, raw).ok());
  const auto parsed = ParseFrameHeader(*frame);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  uint64_t key_errors = 0, value_errors = 0;
  size_t at = 0;
  for (size_t l = 0; l < layout.layers.size(); ++l) {
    const auto layer = CheckedLayer(*frame, parsed->layer_offsets, static_cast<uint32_t>(l),
                                    parsed->header.layers[l].crc32c);
    ASSERT_TRUE(layer.ok()) << layer.status();
    ByteReader in(*layer);
    for (size_t p = 0; p < layout.layers[l].planes.size(); ++p) {
      const PlaneSpec& spec = layout.layers[l].planes[p];
      ByteSpan raw_vectors;
      const auto coded = ReadSeedPlane(spec, tokens, in, raw_vectors);
      ASSERT_TRUE(coded.ok()) << coded.status();
      const bool key = spec.role == PlaneRole::kKey;
      const std::vector<float>* energy =
          key && profiled ? &profile.layers[l][p].heads[0].query_energy : nullptr;
      (key ? key_errors : value_errors) +=
          ExpectSamePlane(chunk, energy, l, p, p == 0, *coded,
                          ByteSpan(raw).subspan(at, spec.token_bytes() * tokens));
      at += spec.token_bytes() * tokens;
    }
  }
  EXPECT_EQ(key_errors, parsed->header.errors.key_error_sum);
  EXPECT_EQ(value_errors, parsed->header.errors.value_error_sum);
}

TEST(SeedRowsTest, ThreadsGiveTheScalarCodecsBytes) {
  struct Shape {
    uint32_t heads, dim;
    RopeSpec rope;
  };
  const RopeStyle neox = RopeStyle::kNeox, woven = RopeStyle::kInterleaved;
  const Shape shapes[] = {{5, 8, RopeSpec{}},
                          {3, 24, {woven, 6, 10000.0, {}}},
                          {2, 64, {neox, 64, 10000.0, {}}},
                          {2, 80, {neox, 40, 10000.0, {}}},
                          {1, 96, {woven, 48, 10000.0, {}}},
                          {2, 128, {neox, 128, 500000.0, {}}},
                          {1, 576, {neox, 64, 10000.0, {}}},
                          {1, 1024, {woven, 1024, 10000.0, {}}}};
  int n = 0;
  for (const Shape& s : shapes) {
    for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
      for (const bool groups : {false, true}) {
        for (const bool delta : {false, true}) {
          const uint32_t tokens[] = {1, 7, 33, 50};
          const int bits = n % kMaxSeedBits + 1;
          SCOPED_TRACE(std::to_string(s.dim) + " " + std::string(DTypeName(dtype)) +
                       (groups ? " groups " : " vector ") + std::to_string(bits));
          // One head where profiles are used: each has energies of its own.
          ExpectSame(MakeUniformLayout("test", 1, s.heads, s.dim, dtype, s.rope), tokens[n % 4],
                     {bits, kMaxSeedBits + 1 - bits, groups, delta}, s.heads == 1);
          ++n;
        }
      }
    }
  }
}

// What only the rows themselves tell: vectors that must be stored raw, and points out of range.
TEST(SeedRowsTest, HardRowsAndDamagedPointsAreReported) {
  const PlaneSpec spec{"v", PlaneRole::kValue, 1, 16, DType::kF32, RopeSpec{}};
  const float rows[] = {1.0f, 0.0f, 1e-9f, 3e38f, std::numeric_limits<float>::infinity(), -2.0f};
  const std::vector<uint8_t> order = {0, 1, 2, 3, 4, 5};
  Paged source(spec, 6, false);
  for (uint32_t t = 0; t < 6; ++t) {
    for (uint32_t c = 0; c < 16; ++c) StoreLe<float>(source.Vector(t, 0) + 4 * c, rows[t]);
  }
  Tasks tasks;
  cuda::SeedUnit unit = NewSeedUnit(spec, source.plane, 0, {2, false, true});
  unit.rows = 6;
  unit.places_at = Place(source.places, tasks.arena);
  unit.order_at = Place(order, tasks.arena);
  unit.scales_at = Place(std::vector<uint16_t>(6), tasks.arena);
  unit.points_at = Place(std::vector<int8_t>(6 * 16), tasks.arena);
  tasks.units.push_back(unit);
  const cuda::SeedLaunch encoding = tasks.Launch(ByteVector(sizeof(cuda::SeedResult)));
  testing::RunSeedEncode(encoding);
  const auto result = LoadLe<cuda::SeedResult>(tasks.arena.data() + encoding.results_at);
  EXPECT_EQ(result.raw_rows, 3u);  // too small, too large, infinite

  for (const int8_t last : {int8_t{4}, int8_t{5}, int8_t{-4}, int8_t{-5}, int8_t{-128}}) {
    std::vector<int8_t> points(6 * 16, 0);
    points[0] = static_cast<int8_t>(last / 2);  // the sum is out of range, not the differences
    points[3 * 16] = static_cast<int8_t>(last - last / 2);
    CopyTo(points, unit.points_at, tasks.arena);
    cuda::SeedLaunch decoding = tasks.Launch(ByteVector(sizeof(uint32_t)));
    testing::RunSeedDecode(decoding);
    EXPECT_EQ(LoadLe<uint32_t>(tasks.arena.data() + decoding.results_at), last < -4 || last > 4)
        << int{last};
  }
}

}  // namespace
}  // namespace latticekv
