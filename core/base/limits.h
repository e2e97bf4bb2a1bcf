// Every limit of the system, by name. docs/limits.md lists each one with its reason; a test
// compares the two.
#ifndef LATTICEKV_CORE_BASE_LIMITS_H_
#define LATTICEKV_CORE_BASE_LIMITS_H_

#include <cstddef>
#include <cstdint>

namespace latticekv::limits {

// Layouts and frames.
inline constexpr uint32_t kMaxLayers = 512;
inline constexpr uint32_t kMaxPlanesPerLayer = 8;
inline constexpr uint32_t kMaxHeads = 256;
inline constexpr uint32_t kMaxHeadDim = 1024;
inline constexpr uint32_t kMaxChunkTokens = 256;
inline constexpr uint32_t kMinChunkTokens = 16;
inline constexpr size_t kMaxNameBytes = 256;
inline constexpr size_t kMaxLayoutBytes = 1 << 20;
inline constexpr size_t kMaxProfileBytes = 64 << 20;
inline constexpr size_t kMaxFrameBytes = size_t{1} << 30;
inline constexpr uint64_t kMaxPosition = uint64_t{1} << 40;
inline constexpr double kMaxRopeScalingFactor = 1e6;
inline constexpr int kMaxSeedBits = 6;

// Messages and streams.
inline constexpr size_t kMaxPartBytes = 4 << 20;
inline constexpr size_t kMaxMessageBytes = kMaxPartBytes + (64 << 10);
inline constexpr size_t kMaxReplyBytes = 64 << 20;
inline constexpr int kMaxConcurrentStreams = 128;
inline constexpr uint32_t kMaxUnackedBlocksPerStream = 64;
inline constexpr size_t kMaxMassBytes = 64 << 20;
inline constexpr uint32_t kMaxLookupTokens = 1 << 20;
inline constexpr uint32_t kMaxBlocksPerRequest = 65536;
inline constexpr uint32_t kMaxListPageSize = 1000;
inline constexpr int64_t kUploadIdleTimeoutMs = 30'000;
inline constexpr int64_t kDrainTimeoutMs = 10'000;
inline constexpr int64_t kCreditWaitTimeoutMs = 10'000;
inline constexpr int64_t kReaderStallTimeoutMs = 60'000;
inline constexpr size_t kMaxCodecQueueJobs = 65536;
inline constexpr size_t kMaxReadQueueJobs = 65536;
inline constexpr size_t kMaxBackgroundJobs = 16;
inline constexpr size_t kMaxRegionBytes = size_t{1} << 30;
inline constexpr size_t kMaxRegions = 256;

// Store.
inline constexpr size_t kMaxSessions = 1'000'000;
inline constexpr size_t kMaxLayouts = 256;
inline constexpr size_t kMaxNamespaces = 1024;
inline constexpr size_t kMaxProfilesPerLayout = 16;
inline constexpr size_t kMaxLearntProfiles = 4;
inline constexpr uint32_t kLearnTokens = 1536;
inline constexpr uint64_t kMaxRelearnTokens = 1 << 20;
inline constexpr size_t kMaxRememberedRemovals = 65536;
inline constexpr size_t kMaxPinsPerBlock = 1024;
inline constexpr size_t kDecodeAheadBytes = 32 << 20;
inline constexpr size_t kMaxJournalRecordBytes = kMaxProfileBytes + (1 << 20);

// Disk tier.
inline constexpr uint64_t kMaxSegmentBytes = 256 << 20;
inline constexpr uint64_t kMinSegments = 4;
inline constexpr uint64_t kDiskReserveBytes = 16 << 20;
inline constexpr size_t kMaxMetadataBytes = 1 << 20;
inline constexpr uint32_t kMaxQualityRank = 255;
inline constexpr size_t kWriteBatchBytes = 16 << 20;
inline constexpr size_t kMaxReadAheadBlocks = 4096;
inline constexpr int64_t kWriteBackWaitMs = 5'000;
inline constexpr int64_t kDiskRetryMs = 1'000;
inline constexpr uint64_t kScrubBytesPerSecond = 64 << 20;

// GPU.
inline constexpr int kGpuStreams = 3;
inline constexpr size_t kGpuRingBytes = 512 << 20;
inline constexpr size_t kMinGpuMemoryBytes = 64 << 20;
inline constexpr size_t kGpuBatchBytes = 64 << 20;
inline constexpr int64_t kGpuBatchDelayMs = 1;
inline constexpr int64_t kGpuQueueWaitMs = 20;
inline constexpr int64_t kGpuTimeoutMs = 10'000;
inline constexpr int kGpuMaxErrors = 3;
inline constexpr size_t kGpuMinJobBytes = 64 << 10;
inline constexpr int kGpuMinCodecThreads = 16;

// Files.
inline constexpr size_t kMaxSafetensorsHeaderBytes = 100'000'000;
inline constexpr size_t kMaxFileHeaderBytes = 256 << 20;

}  // namespace latticekv::limits

#endif  // LATTICEKV_CORE_BASE_LIMITS_H_
