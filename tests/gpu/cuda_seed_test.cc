// Seed frames through the CUDA codec's plans: the scalar codec's bytes, and damaged frames harm
// nobody. Built twice: cuda_seed_test runs on a device and is skipped where there is none;
// host_seed_test has the stand-in of host_cuda.cc and runs the same threads on the host.
// LATTICEKV_SEED sets the seed, LATTICEKV_MUTATIONS the number of mutants.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "core/codec/cuda/cuda_decoder.h"
#include "core/codec/cuda/cuda_encoder.h"
#include "core/codec/seed_codec.h"
#include "tests/gpu/codec_batch.h"
#include "tests/gpu/gpu_layouts.h"
#include "tests/support/mutation.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

using testing::DeviceBuffer;
using testing::EncodeInput;
using testing::ExpectMutantsDecodeAsScalar;
using testing::FromEnvironment;
using testing::kGuard;
using testing::MakeSampleChunk;
using testing::MakeSampleProfile;
using testing::NamedLayouts;
using testing::OwnedArena;
using testing::Random;
using testing::RandomKeep;
using testing::RandomLayout;
using testing::SampleChunk;
using testing::ToHost;
using testing::Upload;

constexpr SeedOptions kSettings[] = {
    {3, 2, false, true}, {1, 6, true, true}, {6, 1, false, false}, {2, 3, true, false}};

class CudaSeedTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = testing::WhyNoDevice(); !why.empty()) GTEST_SKIP() << why;
  }
};

ByteVector ScalarEncode(const EncodeInput& input, const SeedOptions& seed,
                        const ModelProfile* profile, PresetId preset = PresetId::kSeed) {
  EncodeOptions options;
  options.preset = preset;
  options.seed = seed;
  options.profile = profile;
  options.start_position = input.start;
  options.exact_tokens = input.exact_tokens;
  options.keep = input.keep;
  auto frame = EncodeFrame(input.chunk->layout, input.chunk->tokens, input.chunk->views(), options);
  EXPECT_TRUE(frame.ok()) << frame.status();
  return frame.ok() ? *std::move(frame) : ByteVector();
}

// OK with the scalar decoder's bytes in `raw`, or its error.
absl::Status ScalarDecode(const Layout& layout, ByteSpan frame, ByteVector& raw) {
  auto decoder = FrameDecoder::Open(frame, layout, nullptr);
  if (!decoder.ok()) return decoder.status();
  raw.resize(layout.token_bytes() * decoder->info().tokens);
  return DecodeFrame(*decoder, layout, raw);
}

// `read_before`: their layers, for the plan not to read them.
void ExpectDecodesAsScalar(const Layout& layout, const std::vector<ByteVector>& frames,
                           size_t shift = 0, bool read_before = false) {
  std::vector<SeedLayers> read(frames.size());
  std::vector<DeviceBuffer> outputs;
  std::vector<CudaDecodeChunk> chunks;
  for (const ByteVector& frame : frames) {
    const uint32_t tokens = ReadFrameInfo(frame)->tokens;
    outputs.emplace_back(layout.token_bytes() * tokens + 2 * kGuard);
    cudaMemset(outputs.back().data(), 0x5A, outputs.back().size());
    chunks.push_back(
        {frame, ContiguousPlanes(layout, tokens, outputs.back().data() + kGuard + shift), {}});
    if (!read_before) continue;
    SeedLayers& layers = read[chunks.size() - 1];
    auto all = ReadSeedLayers(layout, frame, 0, static_cast<uint32_t>(layout.layers.size()));
    ASSERT_TRUE(all.ok()) << all.status();
    layers = *std::move(all);
    chunks.back().seed = &layers;
  }
  const auto plan = CudaDecodePlan::Make(layout, nullptr, chunks);
  ASSERT_TRUE(plan.ok()) << plan.status();
  const OwnedArena owned(*plan);
  const absl::Status status = plan->Decode(owned.arena(), nullptr);
  ASSERT_TRUE(status.ok()) << status;
  for (size_t i = 0; i < frames.size(); ++i) {
    ByteVector want(outputs[i].size(), std::byte{0x5A}), raw;
    ASSERT_TRUE(ScalarDecode(layout, frames[i], raw).ok());
    std::copy(raw.begin(), raw.end(), want.begin() + static_cast<std::ptrdiff_t>(kGuard + shift));
    ASSERT_TRUE(ToHost(outputs[i]) == want) << "chunk " << i;
  }
}

class Backwards : public LayerRunner {
 public:
  void Run(size_t count, const std::function<void(size_t)>& work) const override {
    while (count-- > 0) work(count);
  }
};

// Encodes chunks as one batch and decodes what came out, both as the scalar codec does. `by_host`:
// which frames the host had to make.
void ExpectSame(const Layout& layout, const SeedOptions& seed, const ModelProfile* profile,
                const std::vector<EncodeInput>& inputs, const std::vector<bool>& by_host,
                size_t shift = 0) {
  std::vector<DeviceBuffer> sources;
  const std::vector<CudaEncodeChunk> chunks = Upload(layout, inputs, shift, sources);
  std::vector<ByteVector> frames;
  for (const EncodeInput& input : inputs) frames.push_back(ScalarEncode(input, seed, profile));
  const auto plan =
      CudaEncodePlan::Make(layout, {PresetId::kSeed, StatsMode::kAuto, profile, seed}, chunks);
  ASSERT_TRUE(plan.ok()) << plan.status();
  const OwnedArena owned(*plan);
  ASSERT_TRUE(plan->EncodeAsync(owned.arena(), nullptr, 2).ok());
  ASSERT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
  const auto batch = plan->Collect(owned.arena());
  ASSERT_TRUE(batch.ok()) << batch.status();
  for (size_t i = 0; i < inputs.size(); ++i) {
    ByteVector got(batch->frame_bytes(i));
    ASSERT_TRUE(batch->DownloadAsync(owned.arena(), i, got, nullptr).ok());
    ASSERT_TRUE(got == frames[i]) << "chunk " << i;
    EXPECT_EQ(batch->encoded_by_host(i), by_host[i]) << "chunk " << i;
    const auto left = plan->CollectForHost(owned.arena(), i);
    ASSERT_TRUE(left.ok()) << left.status();
    const Backwards runner;
    const auto frame = left->Encode(&runner);
    ASSERT_TRUE(frame.ok()) << frame.status();
    EXPECT_TRUE(*frame == frames[i]) << "chunk " << i;
  }
  for (const bool read_before : {false, true}) {
    ExpectDecodesAsScalar(layout, frames, shift, read_before);
  }
}

TEST_F(CudaSeedTest, SameBytesForNamedLayouts) {
  size_t n = 0;
  for (const Layout& layout : NamedLayouts()) {
    SCOPED_TRACE(layout.model);
    std::vector<SampleChunk> chunks;
    for (uint32_t tokens : {1, 33, 70}) chunks.push_back(MakeSampleChunk(layout, tokens, 7));
    const std::vector<EncodeInput> inputs = {
        {&chunks[0], 0}, {&chunks[1], 100'003}, {&chunks[2], 200'006}};
    const ModelProfile profile = MakeSampleProfile(layout, 3, true);
    for (int i = 0; i < 2; ++i, ++n) {
      ExpectSame(layout, kSettings[(n + n / 4) % 4], i == 0 ? nullptr : &profile, inputs,
                 {false, false, false}, i * 4);
    }
  }
}

TEST_F(CudaSeedTest, SameBytesForRandomLayouts) {
  Random random(FromEnvironment("LATTICEKV_SEED", 20261128));
  for (int i = 0; i < 12; ++i) {
    const Layout layout = RandomLayout(random);
    const SampleChunk chunks[] = {MakeSampleChunk(layout, 1 + random.Below(60), random.Next()),
                                  MakeSampleChunk(layout, 1 + random.Below(60), random.Next())};
    const SeedOptions seed{static_cast<int>(1 + random.Below(6)),
                           static_cast<int>(1 + random.Below(6)), random.Below(2) > 0,
                           random.Below(2) > 0};
    SCOPED_TRACE(i);
    ExpectSame(layout, seed, nullptr,
               {{&chunks[0], random.Below(1000)}, {&chunks[1], random.Below(1u << 20)}},
               {false, false});
  }
}

// Vectors that a scale cannot express, not finite, or asked for as they are: of some rows, of whole
// heads, of whole chunks. Zeros have a scale.
TEST_F(CudaSeedTest, RawVectorsAreTheHostsToEncode) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const Layout layout =
        MakeUniformLayout("test", 2, 2, 24, dtype, {RopeStyle::kNeox, 16, 10000.0, {}});
    std::vector<SampleChunk> chunks(5, MakeSampleChunk(layout, 21, 5));
    const size_t vector = 24 * DTypeBytes(dtype), row = 2 * vector;
    const auto fill = [&](SampleChunk& chunk, size_t token, size_t heads, uint32_t bits) {
      for (size_t c = 0; c < 24 * heads; ++c) {
        std::byte* at = chunk.raw.data() + token * row + c * DTypeBytes(dtype);
        if (dtype == DType::kF32) {
          StoreLe<uint32_t>(at, bits);
        } else {
          StoreLe<uint16_t>(at, static_cast<uint16_t>(dtype == DType::kBF16 ? bits >> 16 : bits));
        }
      }
    };
    fill(chunks[1], 4, 1, 0x7FC07FC0);                                  // NaN in every dtype
    fill(chunks[1], 20, 1, 0x00010001);                                 // denormal
    for (size_t t = 0; t < 21; ++t) fill(chunks[2], t, 1, 0x7F807C00);  // infinite
    fill(chunks[3], 7, 2, 0);
    const std::vector<EncodeInput> inputs = {{&chunks[0], 9},
                                             {&chunks[1], 9},
                                             {&chunks[2], 9},
                                             {&chunks[3], 9},
                                             {&chunks[4], 9, {0, 3}}};
    for (const SeedOptions& seed : kSettings) {
      ExpectSame(layout, seed, nullptr, inputs, {false, true, true, false, true});
    }
  }
}

TEST_F(CudaSeedTest, EvictedTokensGiveTheSameBytes) {
  Random random(FromEnvironment("LATTICEKV_SEED", 20261129));
  size_t n = 0;
  for (const Layout& layout : NamedLayouts()) {
    SCOPED_TRACE(layout.model);
    std::vector<SampleChunk> chunks;
    for (uint32_t tokens : {2, 33, 70}) chunks.push_back(MakeSampleChunk(layout, tokens, 7));
    std::vector<EncodeInput> inputs;
    for (const SampleChunk& chunk : chunks) {
      inputs.push_back({&chunk, 100'003, {}, RandomKeep(chunk.tokens, random)});
    }
    inputs.push_back({&chunks[1], 5, {}, {}});
    inputs.push_back({&chunks[1], 5, {0, 32}, RandomKeep(33, random)});
    const ModelProfile profile = MakeSampleProfile(layout, 3, true);
    ExpectSame(layout, kSettings[n++ % 4], &profile, inputs, {false, false, false, false, true});
    // Of exact frames planes are gathered and vectors copied, as far as there are rows of them.
    std::vector<DeviceBuffer> sources;
    const auto plan =
        CudaEncodePlan::Make(layout, {PresetId::kExact}, Upload(layout, inputs, 0, sources));
    ASSERT_TRUE(plan.ok()) << plan.status();
    const OwnedArena owned(*plan);
    const auto frames = plan->Encode(owned.arena(), nullptr);
    ASSERT_TRUE(frames.ok()) << frames.status();
    for (size_t i = 0; i < inputs.size(); ++i) {
      ASSERT_TRUE((*frames)[i] == ScalarEncode(inputs[i], {}, nullptr, PresetId::kExact)) << i;
    }
    ExpectDecodesAsScalar(layout, *frames);
  }
}

TEST_F(CudaSeedTest, KeepMasksThatDoNotFitAreRefused) {
  const Layout layout = MakeUniformLayout("test", 1, 1, 64, DType::kF16, RopeSpec{});
  const SampleChunk chunk = MakeSampleChunk(layout, 8, 1);
  for (const std::vector<uint8_t>& keep :
       {std::vector<uint8_t>(7, 1), std::vector<uint8_t>(8, 0), std::vector<uint8_t>(9, 1)}) {
    std::vector<DeviceBuffer> sources;
    EXPECT_EQ(CudaEncodePlan::Make(layout, {PresetId::kSeed},
                                   Upload(layout, {{&chunk, 16, {}, keep}}, 0, sources))
                  .status()
                  .code(),
              absl::StatusCode::kInvalidArgument);
  }
}

// A paged cache [blocks, heads, block_tokens, head_dim] (HND) or [blocks, block_tokens, heads,
// head_dim] (NHD), blocks in any order.
TEST_F(CudaSeedTest, PagedMemoryInBothOrders) {
  const Layout layout =
      MakeUniformLayout("test", 1, 3, 64, DType::kF16, {RopeStyle::kNeox, 64, 10000.0, {}});
  const uint32_t tokens = 50, first = 7, block_tokens = 16;
  const uint32_t blocks[] = {5, 0, 3, 6};
  const SampleChunk chunk = MakeSampleChunk(layout, tokens, 4);
  const ByteVector frame = ScalarEncode({&chunk, 256}, {}, nullptr);
  ByteVector decoded;
  ASSERT_TRUE(ScalarDecode(layout, frame, decoded).ok());
  const size_t vector = 128, block_stride = block_tokens * 3 * vector, cache = 8 * block_stride;
  for (const bool hnd : {false, true}) {
    SCOPED_TRACE(hnd ? "HND" : "NHD");
    const size_t token_stride = hnd ? vector : 3 * vector;
    const size_t head_stride = hnd ? block_tokens * vector : vector;
    const auto paged = [&](const ByteVector& raw) {
      ByteVector out(2 * cache, std::byte{0x5A});
      for (size_t p = 0; p < 2; ++p) {
        for (uint32_t t = 0; t < tokens; ++t) {
          for (size_t h = 0; h < 3; ++h) {
            const uint32_t at = first + t;
            std::copy_n(&raw[((p * tokens + t) * 3 + h) * vector], vector,
                        &out[p * cache + blocks[at / block_tokens] * block_stride +
                             at % block_tokens * token_stride + h * head_stride]);
          }
        }
      }
      return out;
    };
    const ByteVector source = paged(chunk.raw);
    const DeviceBuffer memory(2 * cache);
    cudaMemcpy(memory.data(), source.data(), source.size(), cudaMemcpyHostToDevice);
    std::vector<std::vector<DevicePlane>> planes(1);
    for (size_t p = 0; p < 2; ++p) {
      planes[0].push_back({memory.data() + p * cache, token_stride, head_stride, block_stride});
    }
    const BlockTable table{blocks, block_tokens, first};
    const CudaEncodeChunk from{tokens, 256, {}, planes, table};
    const auto encode = CudaEncodePlan::Make(layout, {PresetId::kSeed}, {&from, 1});
    ASSERT_TRUE(encode.ok()) << encode.status();
    const OwnedArena encode_arena(*encode);
    const auto frames = encode->Encode(encode_arena.arena(), nullptr);
    ASSERT_TRUE(frames.ok()) << frames.status();
    EXPECT_TRUE(frames->front() == frame);
    cudaMemset(memory.data(), 0x5A, memory.size());
    const CudaDecodeChunk to{frame, planes, table};
    const auto decode = CudaDecodePlan::Make(layout, nullptr, {&to, 1});
    ASSERT_TRUE(decode.ok()) << decode.status();
    const OwnedArena decode_arena(*decode);
    ASSERT_TRUE(decode->Decode(decode_arena.arena(), nullptr).ok());
    EXPECT_TRUE(ToHost(memory) == paged(decoded));
  }
}

TEST_F(CudaSeedTest, DamagedFramesAreRefusedAsTheScalarDecoderRefusesThem) {
  Layout layout;
  LayerSpec layer;
  layer.planes.push_back(
      {"k", PlaneRole::kKey, 2, 16, DType::kF16, {RopeStyle::kInterleaved, 8, 10000.0, {}}});
  layer.planes.push_back({"v", PlaneRole::kValue, 2, 24, DType::kBF16, RopeSpec{}});
  Random random(FromEnvironment("LATTICEKV_SEED", 20261128));
  for (const bool evicts : {false, true}) {
    // Tokens of opaque planes cannot be evicted.
    if (!evicts) {
      layer.planes.push_back({"state", PlaneRole::kOpaque, 1, 3, DType::kF32, RopeSpec{}});
    } else {
      layer.planes.pop_back();
    }
    layout.layers.assign(2, layer);
    std::vector<ByteVector> originals;
    for (const SeedOptions& seed : kSettings) {
      for (uint32_t tokens : {1, 5, 40}) {
        const SampleChunk chunk = MakeSampleChunk(layout, tokens, tokens);
        const auto keep = evicts ? RandomKeep(tokens, random) : std::vector<uint8_t>();
        originals.push_back(ScalarEncode({&chunk, 77, {}, keep}, seed, nullptr));
        if (tokens == 1) continue;
        originals.push_back(ScalarEncode({&chunk, 77, {1, 3}, keep}, seed, nullptr));
        originals.push_back(ScalarEncode({&chunk, 77, {}, keep}, seed, nullptr, PresetId::kExact));
      }
    }
    ExpectMutantsDecodeAsScalar(layout, nullptr, originals, 16,
                                FromEnvironment("LATTICEKV_MUTATIONS", 3'000) / 2, random);
  }
}

}  // namespace
}  // namespace latticekv
