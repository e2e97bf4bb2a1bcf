// The executor over a device that fails as it is told to: the same frames, fall-back for every
// reason, no waiting without end.
#include "core/codec/gpu/gpu_executor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "core/codec/frame_format.h"
#include "tests/support/fake_gpu.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

using testing::FakeGpuScript;
using testing::MakeFakeGpu;
using testing::MakeSampleChunk;
using testing::SampleChunk;

class GpuExecutorTest : public ::testing::Test {
 protected:
  GpuExecutorTest()
      : layout_(std::make_shared<Layout>(
            MakeUniformLayout("model", 2, 2, 64, DType::kF16, {RopeStyle::kNeox, 64, 10000.0}))) {
    for (uint64_t seed = 1; seed <= 8; ++seed) {
      chunks_.push_back(MakeSampleChunk(*layout_, 32, seed));
      auto frame = EncodeFrame(*layout_, 32, chunks_.back().views(), {});
      EXPECT_TRUE(frame.ok()) << frame.status();
      frames_.push_back(std::make_shared<ByteVector>(*std::move(frame)));
    }
    options_.min_job_bytes = 0;
    options_.ring_bytes = 8 << 20;
  }

  void Start() {
    auto executor =
        GpuExecutor::Start(MakeFakeGpu(script_, options_), options_, [this](const absl::Status& s) {
          MutexLock lock(mutex_);
          off_.push_back(s);
        });
    ASSERT_TRUE(executor.ok()) << executor.status();
    executor_ = *std::move(executor);
    self_test_batches_ = script_->batch_sizes().size();
  }

  std::optional<ByteVector> Encode(size_t i, EncodeOptions options = {}) {
    return executor_->Encode({layout_, nullptr, 32, options, chunks_[i].raw});
  }
  // Whether the device decoded the layers; checks the bytes if so.
  bool Decode(size_t i, uint32_t first_layer, uint32_t layers, PresetId preset = kDefaultPreset) {
    const size_t plane_bytes = layout_->layers[0].planes[0].token_bytes() * 32;
    std::vector<ByteVector> planes(2 * layers, ByteVector(plane_bytes));
    std::vector<MutableByteSpan> out(planes.begin(), planes.end());
    if (!executor_->Decode(
            {layout_, nullptr, *frames_[i], frames_[i], preset, 32, first_layer, layers, out})) {
      return false;
    }
    auto decoder = FrameDecoder::Open(*frames_[i], *layout_, nullptr);
    EXPECT_TRUE(decoder.ok());
    ByteVector raw(layout_->token_bytes() * 32);
    EXPECT_TRUE(DecodeFrame(*decoder, *layout_, raw).ok());
    for (size_t p = 0; p < planes.size(); ++p) {
      const auto begin = raw.begin() + (2 * first_layer + p) * plane_bytes;
      EXPECT_TRUE(std::equal(planes[p].begin(), planes[p].end(), begin)) << "plane " << p;
    }
    return true;
  }
  uint64_t Fallbacks(GpuFallback why) {
    return executor_->stats().fallbacks[static_cast<size_t>(why)];
  }
  // However long the threads that ask take to come.
  void WaitForWaiting(size_t jobs) {
    while (executor_->stats().waiting < jobs) std::this_thread::yield();
  }
  std::vector<size_t> Batches() {
    std::vector<size_t> all = script_->batch_sizes();
    all.erase(all.begin(), all.begin() + self_test_batches_);
    return all;
  }

  std::shared_ptr<const Layout> layout_;
  std::vector<SampleChunk> chunks_;
  std::vector<std::shared_ptr<ByteVector>> frames_;
  GpuOptions options_;
  std::shared_ptr<FakeGpuScript> script_ = std::make_shared<FakeGpuScript>();
  size_t self_test_batches_ = 0;
  Mutex mutex_;
  std::vector<absl::Status> off_ LKV_GUARDED_BY(mutex_);
  std::unique_ptr<GpuExecutor> executor_;
};

TEST_F(GpuExecutorTest, GivesTheCpusFramesAndBytes) {
  Start();
  for (size_t i = 0; i < chunks_.size(); ++i) {
    const auto frame = Encode(i);
    ASSERT_TRUE(frame.has_value());
    EXPECT_EQ(*frame, *frames_[i]);
    EXPECT_TRUE(Decode(i, 0, 2));
    EXPECT_TRUE(Decode(i, 1, 1));
    EXPECT_TRUE(
        executor_->Decode({layout_, nullptr, *frames_[i], nullptr, kDefaultPreset, 32, 0, 2, {}}));
  }
  const GpuStats stats = executor_->stats();
  EXPECT_EQ(stats.encodes, chunks_.size());
  EXPECT_EQ(stats.decodes, 3 * chunks_.size());
  for (const uint64_t n : stats.fallbacks) EXPECT_EQ(n, 0u);
}

TEST_F(GpuExecutorTest, ADeviceThatMakesOtherFramesIsNotUsed) {
  script_->SpoilFrames();
  auto executor = GpuExecutor::Start(MakeFakeGpu(script_, options_), options_, {});
  EXPECT_EQ(executor.status().code(), absl::StatusCode::kInternal) << executor.status();
}

TEST_F(GpuExecutorTest, WhatWaitsGoesAsOneBatch) {
  options_.streams = 1;
  Start();
  script_->Close();
  std::vector<std::thread> threads;
  threads.emplace_back([&] { EXPECT_EQ(*Encode(0), *frames_[0]); });
  script_->WaitForBatches(self_test_batches_ + 1);
  for (size_t i = 1; i < 8; ++i) {
    threads.emplace_back([&, i] { EXPECT_EQ(*Encode(i), *frames_[i]); });
  }
  WaitForWaiting(7);  // behind the lane, which is held
  script_->Open();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(Batches(), (std::vector<size_t>{1, 7}));
}

TEST_F(GpuExecutorTest, BatchesKeepTheirBoundAndTheirKind) {
  options_.streams = 1;
  options_.batch_bytes = 3 * chunks_[0].raw.size();
  Start();
  script_->Close();
  std::vector<std::thread> threads;
  threads.emplace_back([&] { EXPECT_TRUE(Encode(0).has_value()); });
  script_->WaitForBatches(self_test_batches_ + 1);
  for (size_t i = 1; i < 7; ++i) {
    threads.emplace_back([&, i] { EXPECT_TRUE(Encode(i).has_value()); });
  }
  threads.emplace_back([&] { EXPECT_TRUE(Decode(7, 0, 2)); });
  threads.emplace_back([&] {
    EncodeOptions other;
    other.preset = PresetId::kSmall;
    EXPECT_TRUE(Encode(7, other).has_value());
  });
  WaitForWaiting(8);
  script_->Open();
  for (std::thread& thread : threads) thread.join();
  for (const size_t size : Batches()) EXPECT_LE(size, 3u);
  const GpuStats stats = executor_->stats();
  EXPECT_EQ(stats.encodes, 8u);
  EXPECT_EQ(stats.decodes, 1u);
}

// Settings of the seed stages arrive, and are one batch's.
TEST_F(GpuExecutorTest, SeedSettingsGoInBatchesOfTheirOwn) {
  options_.streams = 1;
  Start();
  script_->Close();
  std::vector<std::thread> threads;
  threads.emplace_back([&] { EXPECT_TRUE(Encode(0).has_value()); });
  script_->WaitForBatches(self_test_batches_ + 1);
  const std::vector<SeedOptions> settings = {
      {3, 2}, {3, 2}, {2, 3}, {3, 2, true}, {3, 2, false, false}};
  for (size_t i = 0; i < settings.size(); ++i) {
    threads.emplace_back([&, i] {
      EncodeOptions options;
      options.preset = PresetId::kSeed;
      options.seed = settings[i];
      const auto frame = EncodeFrame(*layout_, 32, chunks_[i].views(), options);
      ASSERT_TRUE(frame.ok()) << frame.status();
      EXPECT_EQ(Encode(i, options), *frame);
    });
  }
  WaitForWaiting(settings.size());
  script_->Open();
  for (std::thread& thread : threads) thread.join();
  std::vector<size_t> batches = Batches();
  std::sort(batches.begin(), batches.end());
  EXPECT_EQ(batches, (std::vector<size_t>{1, 1, 1, 1, 2}));
  EXPECT_EQ(executor_->stats().encodes, 1 + settings.size());
}

// What the device leaves to CPUs is done by the thread that asked and its helpers, when neither the
// lane nor the ring is held any more.
TEST_F(GpuExecutorTest, WhatIsLeftOfAChunkKeepsNoOtherWaiting) {
  struct Runner : LayerRunner {
    explicit Runner(std::function<void()> before) : before(std::move(before)) {}
    void Run(size_t count, const std::function<void(size_t)>& work) const override {
      before();
      for (size_t i = count; i-- > 0;) work(i);
    }
    std::function<void()> before;
  };
  options_.streams = 1;
  options_.ring_bytes = (FrameBytesBound(2, chunks_[0].raw.size()) + 255) / 256 * 256;
  Start();
  size_t calls = 0;
  const Runner runner([&] {
    ++calls;
    EXPECT_EQ(Encode(1), *frames_[1]);
  });
  EncodeOptions options;
  options.preset = PresetId::kSeed;
  const auto frame = EncodeFrame(*layout_, 32, chunks_[0].views(), options);
  ASSERT_TRUE(frame.ok()) << frame.status();
  options.runner = &runner;
  EXPECT_EQ(Encode(0, options), *frame);
  EXPECT_EQ(calls, 1u);
}

TEST_F(GpuExecutorTest, LanesWorkSideBySide) {
  Start();
  script_->Close();
  std::vector<std::thread> threads;
  for (size_t i = 0; i < 3; ++i) {
    threads.emplace_back([&, i] { EXPECT_TRUE(Encode(i).has_value()); });
    script_->WaitForBatches(self_test_batches_ + i + 1);
  }
  script_->Open();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(script_->most_at_once(), 3);
}

TEST_F(GpuExecutorTest, ABatchTooLargeForTheDeviceIsParted) {
  options_.streams = 1;
  Start();
  script_->SetCapacity(2 * chunks_[0].raw.size());
  script_->Close();
  std::vector<std::thread> threads;
  threads.emplace_back([&] { EXPECT_TRUE(Encode(0).has_value()); });
  script_->WaitForBatches(self_test_batches_ + 1);
  for (size_t i = 1; i < 8; ++i) {
    threads.emplace_back([&, i] { EXPECT_EQ(*Encode(i), *frames_[i]); });
  }
  WaitForWaiting(7);
  script_->Open();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(executor_->stats().encodes, 8u);
}

TEST_F(GpuExecutorTest, ShortMemoryFallsBackAndIsNoError) {
  Start();
  script_->SetCapacity(1);
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(Encode(0).has_value());
  EXPECT_EQ(Fallbacks(GpuFallback::kMemoryShort), 5u);
  EXPECT_TRUE(executor_->stats().on);
  EXPECT_EQ(executor_->stats().errors, 0u);
  script_->SetCapacity(0);
  EXPECT_TRUE(Encode(0).has_value());
}

TEST_F(GpuExecutorTest, OneDamagedFrameHarmsNoOther) {
  options_.streams = 1;
  Start();
  frames_[2]->back() ^= std::byte{1};
  script_->Close();
  std::vector<std::thread> threads;
  threads.emplace_back([&] { EXPECT_TRUE(Decode(0, 0, 2)); });
  script_->WaitForBatches(self_test_batches_ + 1);
  for (size_t i = 1; i < 8; ++i) {
    threads.emplace_back([&, i] { EXPECT_EQ(Decode(i, 0, 2), i != 2); });
  }
  WaitForWaiting(7);
  script_->Open();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(Fallbacks(GpuFallback::kRejected), 1u);
  EXPECT_EQ(executor_->stats().decodes, 7u);
}

TEST_F(GpuExecutorTest, WhatTheDeviceDoesNotDoGoesToACpu) {
  Start();
  EncodeOptions options;
  options.preset = PresetId::kExact;
  EXPECT_FALSE(Encode(0, options).has_value());
  options = {};
  const std::vector<float> mass(2 * 32, 1.0f);
  options.mass = {mass.data(), 32, 32};
  EXPECT_FALSE(Encode(0, options).has_value());
  script_->FailNext(1, absl::UnimplementedError("a stage"));
  EXPECT_FALSE(Encode(0).has_value());
  EXPECT_EQ(Fallbacks(GpuFallback::kUnsupported), 3u);
  EXPECT_TRUE(executor_->stats().on);
}

TEST_F(GpuExecutorTest, EvictedTokensAreLeftOutByTheDevice) {
  Start();
  EncodeOptions options;
  options.start_position = 64;
  options.exact_tokens = {5};
  options.keep.assign(32, 1);
  options.keep[3] = options.keep[17] = 0;
  for (const PresetId preset : {kDefaultPreset, PresetId::kSeed}) {
    options.preset = preset;
    const auto frame = Encode(0, options);
    const auto expected = EncodeFrame(*layout_, 32, chunks_[0].views(), options);
    ASSERT_TRUE(frame.has_value() && expected.ok());
    EXPECT_EQ(*frame, *expected);
    frames_[0] = std::make_shared<ByteVector>(*frame);
    EXPECT_TRUE(Decode(0, 0, 2, preset));
    EXPECT_TRUE(Decode(0, 1, 1, preset));
  }
}

TEST_F(GpuExecutorTest, SmallJobsStayOnTheCpu) {
  options_.min_job_bytes = chunks_[0].raw.size() + 1;
  Start();
  EXPECT_FALSE(Encode(0).has_value());
  EXPECT_FALSE(Decode(0, 0, 2));
  EXPECT_EQ(Fallbacks(GpuFallback::kSmall), 2u);
}

TEST_F(GpuExecutorTest, AFullRingFallsBackAndComesBack) {
  options_.streams = 1;
  options_.ring_bytes = 2 * ((FrameBytesBound(2, chunks_[0].raw.size()) + 255) / 256 * 256);
  Start();
  script_->Close();
  // Two hold the ring while the lane is held: the third waits as long as the queue lets it.
  std::thread first([&] { EXPECT_EQ(*Encode(0), *frames_[0]); });
  script_->WaitForBatches(self_test_batches_ + 1);
  std::thread second([&] { EXPECT_EQ(*Encode(1), *frames_[1]); });
  WaitForWaiting(1);
  EXPECT_FALSE(Encode(2).has_value());
  EXPECT_EQ(Fallbacks(GpuFallback::kQueueFull), 1u);
  script_->Open();
  first.join();
  second.join();
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(*Encode(i), *frames_[i]);
}

TEST_F(GpuExecutorTest, AnErrorFallsBackAndErrorsThatPersistTurnItOff) {
  Start();
  script_->FailNext(2, absl::InternalError("launch"));
  EXPECT_FALSE(Encode(0).has_value());
  EXPECT_FALSE(Encode(0).has_value());
  EXPECT_TRUE(Encode(0).has_value());  // resets the count
  script_->FailNext(3, absl::InternalError("launch"));
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(Decode(0, 0, 2));
  EXPECT_FALSE(Encode(0).has_value());
  const GpuStats stats = executor_->stats();
  EXPECT_FALSE(stats.on);
  EXPECT_EQ(stats.off_reason, "launch");
  EXPECT_EQ(stats.errors, 5u);
  EXPECT_EQ(Fallbacks(GpuFallback::kDeviceError), 5u);
  EXPECT_EQ(Fallbacks(GpuFallback::kOff), 1u);
  MutexLock lock(mutex_);
  ASSERT_EQ(off_.size(), 1u);  // told once
}

TEST_F(GpuExecutorTest, ADeviceThatDoesNotAnswerIsLeftAlone) {
  options_.timeout_ms = 100;
  Start();
  script_->Close();
  script_->FailNext(100, absl::DeadlineExceededError("the device hung"));
  std::vector<std::thread> threads;
  for (size_t i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] { EXPECT_FALSE(Encode(i).has_value()); });
  }
  // All of them are back, and the device has answered none of them.
  for (std::thread& thread : threads) thread.join();
  // A job that no lane took in time says nothing about the device.
  while (executor_->stats().on) EXPECT_FALSE(Encode(0).has_value());
  EXPECT_FALSE(Encode(0).has_value());
  script_->Open();
  executor_.reset();  // waits for the lanes, which end
  MutexLock lock(mutex_);
  ASSERT_EQ(off_.size(), 1u);
  EXPECT_TRUE(absl::IsDeadlineExceeded(off_[0])) << off_[0];
}

TEST(PinnedRingTest, GivesAlignedPiecesThatDoNotOverlapAndNeverLosesRoom) {
  PinnedRing ring(64 << 10);
  testing::Random random(7);
  struct Piece {
    size_t at, bytes;
  };
  std::vector<Piece> pieces;
  size_t refused = 0;
  for (int round = 0; round < 20000; ++round) {
    if (pieces.size() < 12 && random.Below(2) == 0) {
      const size_t bytes = 1 + random.Below(16 << 10);
      const auto at = ring.Take(bytes);
      if (!at) {
        ++refused;
        ASSERT_FALSE(pieces.empty()) << "an empty ring refuses nothing that fits";
        continue;
      }
      ASSERT_EQ(*at % PinnedRing::kAlignment, 0u);
      ASSERT_LE(*at + bytes, ring.bytes());
      for (const Piece& p : pieces) {
        ASSERT_TRUE(*at + bytes <= p.at || p.at + p.bytes <= *at) << "pieces overlap";
      }
      pieces.push_back({*at, bytes});
    } else if (!pieces.empty()) {
      const size_t i = random.Below(static_cast<uint32_t>(pieces.size()));
      ring.GiveBack(pieces[i].at);
      pieces.erase(pieces.begin() + static_cast<ptrdiff_t>(i));
    }
  }
  EXPECT_GT(refused, 100u);
  for (const Piece& p : pieces) ring.GiveBack(p.at);
  EXPECT_TRUE(ring.empty());
  EXPECT_EQ(ring.Take(ring.bytes()), std::optional<size_t>(0));
  EXPECT_FALSE(ring.Take(1).has_value());
  EXPECT_FALSE(PinnedRing(1024).Take(1025).has_value());
}

}  // namespace
}  // namespace latticekv
