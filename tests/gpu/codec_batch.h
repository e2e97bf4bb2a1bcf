// What the tests of the CUDA codec do alike, whichever stages the frames have.
#ifndef LATTICEKV_TESTS_GPU_CODEC_BATCH_H_
#define LATTICEKV_TESTS_GPU_CODEC_BATCH_H_

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <utility>
#include <vector>

#include "core/codec/cuda/cuda_decoder.h"
#include "core/codec/cuda/cuda_encoder.h"
#include "core/codec/frame_format.h"
#include "core/codec/token_eviction.h"
#include "tests/gpu/device_batch.h"
#include "tests/support/mutation.h"
#include "tests/support/sample_chunk.h"

namespace latticekv::testing {

// Bytes around destinations, to see that nothing writes there.
inline constexpr size_t kGuard = 256;

struct EncodeInput {
  const SampleChunk* chunk;
  uint64_t start;
  std::vector<uint32_t> exact_tokens = {};
  std::vector<uint8_t> keep = {};
};

// Which of a chunk's tokens to keep: about two thirds, one at least.
inline std::vector<uint8_t> RandomKeep(uint32_t tokens, Random& random) {
  std::vector<uint8_t> keep(tokens);
  for (uint8_t& k : keep) k = random.Below(3) != 0;
  keep[random.Below(tokens)] = 1;
  return keep;
}

// Tokens of layouts with opaque planes cannot be evicted.
inline bool CanEvict(const Layout& layout) { return CheckKeep(layout, 2, {1, 0}).ok(); }

// The chunks of `inputs` on the device, `shift` bytes off their natural alignment; their memory is
// added to `sources`.
inline std::vector<CudaEncodeChunk> Upload(const Layout& layout,
                                           const std::vector<EncodeInput>& inputs, size_t shift,
                                           std::vector<DeviceBuffer>& sources) {
  std::vector<CudaEncodeChunk> chunks;
  for (const EncodeInput& input : inputs) {
    const ByteVector& raw = input.chunk->raw;
    sources.emplace_back(raw.size() + shift);
    std::byte* at = sources.back().data() + shift;
    cudaMemcpy(at, raw.data(), raw.size(), cudaMemcpyHostToDevice);
    chunks.push_back({input.chunk->tokens,
                      input.start,
                      input.exact_tokens,
                      ContiguousPlanes(layout, input.chunk->tokens, at),
                      {},
                      input.keep});
  }
  return chunks;
}

// Decodes mutants of `originals`, of up to 40 tokens, whose checksums are right, in batches of
// `batch`: device and scalar decoder agree on which are damaged, and on the bytes of those that are
// not; guards around destinations stay as they were. Under compute-sanitizer this shows that no
// mutant reads or writes out of bounds.
inline void ExpectMutantsDecodeAsScalar(const Layout& layout, const ModelProfile* profile,
                                        const std::vector<ByteVector>& originals, size_t batch,
                                        uint64_t mutants, Random random) {
  size_t refused_by_host = 0, refused_by_device = 0, decoded = 0;
  const size_t room = layout.token_bytes() * 40 + kGuard;
  const size_t body = kFrameHeaderBytes + layout.layers.size() * kLayerEntryBytes;
  for (uint64_t n = 0; n < mutants;) {
    // One batch: whatever one chunk's damage does, its neighbours decode as if alone.
    std::vector<ByteVector> frames;
    std::vector<CudaDecodeChunk> chunks;
    const DeviceBuffer output(batch * room + kGuard);
    cudaMemset(output.data(), 0x5A, output.size());
    for (; frames.size() < batch; ++n) {
      ByteVector frame = originals[random.Below(static_cast<uint32_t>(originals.size()))];
      const size_t head = FramePrefixBytes(frame) - body + 80;  // sections, the first tile's head
      for (uint32_t i = random.Below(3) + 1; i > 0; --i) {
        const size_t near =
            random.Below(2) ? std::min<size_t>(frame.size() - body, head) : frame.size() - body;
        frame[body + random.Below(static_cast<uint32_t>(near))] =
            static_cast<std::byte>(random.Next());
      }
      Reseal(frame);
      const auto info = ReadFrameInfo(frame);
      const uint32_t tokens = info.ok() ? info->tokens : 1;
      const CudaDecodeChunk chunk{
          frame,
          ContiguousPlanes(layout, tokens, output.data() + kGuard + frames.size() * room),
          {}};
      if (!CudaDecodePlan::Make(layout, profile, {&chunk, 1}).ok()) {
        auto decoder = FrameDecoder::Open(frame, layout, profile);
        ByteVector raw(layout.token_bytes() * tokens);
        EXPECT_FALSE(decoder.ok() && DecodeFrame(*decoder, layout, raw).ok());
        ++refused_by_host;
        continue;
      }
      frames.push_back(std::move(frame));
      chunks.push_back(chunk);
      chunks.back().frame = frames.back();
    }
    const auto plan = CudaDecodePlan::Make(layout, profile, chunks);
    ASSERT_TRUE(plan.ok()) << plan.status();
    const OwnedArena owned(*plan);
    const absl::Status status = plan->Decode(owned.arena(), nullptr);
    ASSERT_TRUE(status.ok() || status.code() == absl::StatusCode::kDataLoss) << status;
    const ByteVector got = ToHost(output);
    for (size_t i = 0; i < frames.size(); ++i) {
      auto decoder = FrameDecoder::Open(frames[i], layout, profile);
      ASSERT_TRUE(decoder.ok());
      ByteVector raw(layout.token_bytes() * decoder->info().tokens);
      const bool good = DecodeFrame(*decoder, layout, raw).ok();
      ASSERT_EQ(plan->ChunkResult(owned.arena(), i).ok(), good) << "mutant " << i;
      const auto begin = got.begin() + static_cast<std::ptrdiff_t>(kGuard + i * room);
      const auto end = begin + static_cast<std::ptrdiff_t>(raw.size());
      if (good) {
        ASSERT_TRUE(std::equal(raw.begin(), raw.end(), begin)) << "mutant " << i;
      }
      ASSERT_TRUE(std::all_of(end, begin + static_cast<std::ptrdiff_t>(room),
                              [](std::byte b) { return b == std::byte{0x5A}; }));
      ++(good ? decoded : refused_by_device);
    }
  }
  printf("%zu refused by the host, %zu by the device, %zu decoded\n", refused_by_host,
         refused_by_device, decoded);
  EXPECT_GT(refused_by_host, mutants / 100);
  EXPECT_GT(refused_by_device, mutants / 100);
  EXPECT_GT(decoded, mutants / 100);
}

}  // namespace latticekv::testing

#endif  // LATTICEKV_TESTS_GPU_CODEC_BATCH_H_
