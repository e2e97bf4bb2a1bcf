// Kernels of a budget's streams stay within its share of the multiprocessors. Skipped where there
// is no device.
#include "core/codec/cuda/sm_budget.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "tests/gpu/device_batch.h"
#include "tests/gpu/sm_ids_kernel.h"

namespace latticekv {
namespace {

constexpr size_t kMaxIds = 1024;

// Multiprocessors that a kernel of many blocks ran on.
size_t MultiprocessorsOf(const SmBudget& budget) {
  const auto stream = budget.MakeStream();
  EXPECT_TRUE(stream.ok()) << stream.status();
  if (!stream.ok()) return 0;
  const testing::DeviceBuffer seen(kMaxIds * sizeof(unsigned int));
  cudaMemset(seen.data(), 0, seen.size());
  cudaDeviceSynchronize();
  EXPECT_EQ(testing::LaunchNoteMultiprocessor(reinterpret_cast<unsigned int*>(seen.data()), 4096,
                                              *stream),
            cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(*stream), cudaSuccess);
  const ByteVector host = testing::ToHost(seen);
  size_t used = 0;
  for (size_t i = 0; i < kMaxIds; ++i) {
    used += LoadLe<unsigned int>(host.data() + i * sizeof(unsigned int)) > 0;
  }
  return used;
}

TEST(SmBudgetTest, KernelsStayWithinTheirShare) {
  if (const std::string why = testing::WhyNoDevice(); !why.empty()) GTEST_SKIP() << why;
  ASSERT_EQ(cudaFree(nullptr), cudaSuccess);
  const auto all = SmBudget::Make(0, 100);
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(MultiprocessorsOf(*all), all->multiprocessors());
  for (const int percent : {1, 25, 50}) {
    const auto part = SmBudget::Make(0, percent);
    if (absl::IsUnimplemented(part.status())) GTEST_SKIP() << part.status();
    ASSERT_TRUE(part.ok()) << part.status();
    printf("%d %%: %u of %u multiprocessors\n", percent, part->multiprocessors(),
           all->multiprocessors());
    EXPECT_GE(100 * part->multiprocessors(), percent * all->multiprocessors());
    EXPECT_LT(part->multiprocessors(), all->multiprocessors());
    EXPECT_EQ(MultiprocessorsOf(*part), part->multiprocessors());
  }
}

}  // namespace
}  // namespace latticekv
