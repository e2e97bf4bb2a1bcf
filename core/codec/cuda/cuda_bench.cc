#include "core/codec/cuda/cuda_bench.h"

#include <algorithm>
#include <functional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"

namespace latticekv {
namespace {

constexpr int kWarmUps = 3;
constexpr int kRuns = 20;
constexpr size_t kCopyBytes = size_t{1} << 30;
constexpr uint32_t kTokens = limits::kMaxChunkTokens;

double Median(std::vector<double> times) {
  const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

struct Event {
  Event() { cudaEventCreate(&event); }
  ~Event() { cudaEventDestroy(event); }
  cudaEvent_t event = nullptr;
};

using Step = std::function<absl::Status()>;

// Median milliseconds of what `run` enqueues on the default stream.
absl::StatusOr<double> EventMs(const Step& run) {
  const Event begin, end;
  std::vector<double> times;
  for (int i = 0; i < kWarmUps + kRuns; ++i) {
    cudaEventRecord(begin.event);
    LKV_RETURN_IF_ERROR(run());
    cudaEventRecord(end.event);
    LKV_RETURN_IF_ERROR(CudaStatus(cudaEventSynchronize(end.event), "a run failed"));
    float ms = 0;
    cudaEventElapsedTime(&ms, begin.event, end.event);
    if (i >= kWarmUps) times.push_back(ms);
  }
  return Median(times);
}

// Median milliseconds of `run`, which waits for its end, by the clock.
absl::StatusOr<double> ClockMs(const Step& run) {
  std::vector<double> times;
  for (int i = 0; i < 1 + kRuns; ++i) {
    const BenchTime begin = std::chrono::steady_clock::now();
    LKV_RETURN_IF_ERROR(run());
    if (i > 0) times.push_back(MsSince(begin));
  }
  return Median(times);
}

// Working memory for `plan`.
struct Memory {
  template <typename Plan>
  static absl::StatusOr<Memory> Make(const Plan& plan) {
    Memory out;
    LKV_ASSIGN_OR_RETURN(out.device, DeviceMemory::Make(plan.device_bytes()));
    LKV_ASSIGN_OR_RETURN(out.pinned, PinnedMemory::Make(plan.pinned_bytes()));
    return out;
  }
  CudaArena arena() const {
    return {device.data(), device.size(), pinned.data(), pinned.size(), nullptr};
  }
  DeviceMemory device;
  PinnedMemory pinned;
};

absl::Status MeasureEncode(const BenchData& data, size_t count, const DeviceMemory& raw,
                           GpuCodecTimes& times) {
  std::vector<CudaEncodeChunk> chunks;
  for (size_t i = 0; i < count; ++i) {
    chunks.push_back(BenchEncodeChunk(data, i, raw.data() + i * data.chunk_bytes));
  }
  LKV_ASSIGN_OR_RETURN(const CudaEncodePlan plan,
                       CudaEncodePlan::Make(data.layout(), data.settings(), chunks));
  LKV_ASSIGN_OR_RETURN(const Memory memory, Memory::Make(plan));
  const CudaArena arena = memory.arena();
  LKV_ASSIGN_OR_RETURN(const PinnedMemory out, PinnedMemory::Make(count * data.frame_room));
  GpuLaneTimes ignored;
  const auto encode = [&] {
    return EncodeTo(plan, arena, {out.data(), out.size()}, 0, nullptr, ignored);
  };
  LKV_ASSIGN_OR_RETURN(const std::vector<ByteSpan> frames, encode());
  for (size_t i = 0; i < count; ++i) {
    LKV_RETURN_IF_ERROR(CheckFrame(data, i, frames[i]));
    times.frame_bytes += frames[i].size();
  }
  LKV_ASSIGN_OR_RETURN(times.encode_kernels_ms,
                       EventMs([&] { return plan.LaunchAsync(arena, nullptr); }));
  LKV_ASSIGN_OR_RETURN(times.encode_ms, ClockMs([&] { return encode().status(); }));
  return absl::OkStatus();
}

absl::Status MeasureDecode(const BenchData& data, size_t count, GpuCodecTimes& times) {
  LKV_ASSIGN_OR_RETURN(const DeviceMemory raw, DeviceMemory::Make(count * data.chunk_bytes));
  LKV_ASSIGN_OR_RETURN(const PinnedMemory stored, PinnedMemory::Make(count * data.frame_room));
  std::vector<CudaDecodeChunk> chunks;
  for (size_t i = 0; i < count; ++i) {
    const ByteVector& frame = data.frames[data.Of(i)];
    std::byte* at = stored.data() + i * data.frame_room;
    std::copy(frame.begin(), frame.end(), at);
    chunks.push_back(BenchDecodeChunk(data, {at, frame.size()}, raw.data() + i * data.chunk_bytes));
  }
  LKV_ASSIGN_OR_RETURN(const CudaDecodePlan plan,
                       CudaDecodePlan::Make(data.layout(), data.what.profile, chunks));
  LKV_ASSIGN_OR_RETURN(const Memory memory, Memory::Make(plan));
  const CudaArena arena = memory.arena();
  LKV_RETURN_IF_ERROR(plan.Decode(arena, nullptr));
  LKV_RETURN_IF_ERROR(CheckDecodedDev(data, count, raw.data()));
  LKV_ASSIGN_OR_RETURN(times.decode_kernels_ms,
                       EventMs([&] { return plan.LaunchAsync(arena, nullptr); }));
  LKV_ASSIGN_OR_RETURN(times.decode_ms, ClockMs([&] { return plan.Decode(arena, nullptr); }));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<BenchData> MakeBenchData(const GpuBenchCase& what) {
  BenchData out;
  out.what = what;
  out.chunk_bytes = what.layout->token_bytes() * kTokens;
  if (what.chunks.empty()) return absl::InvalidArgumentError("a benchmark needs chunks");
  for (size_t i = 0; i < what.chunks.size(); ++i) {
    if (what.chunks[i].size() != out.chunk_bytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          "a chunk of the benchmark has ", what.chunks[i].size(), " bytes, not ", out.chunk_bytes));
    }
    EncodeOptions options;
    options.preset = what.preset;
    options.stats = what.stats;
    options.profile = what.profile;
    options.start_position = i * kTokens;
    LKV_ASSIGN_OR_RETURN(
        out.frames.emplace_back(),
        EncodeFrame(*what.layout, kTokens, RawChunkViews(*what.layout, kTokens, what.chunks[i]),
                    options));
    LKV_ASSIGN_OR_RETURN(const FrameDecoder decoder,
                         FrameDecoder::Open(out.frames.back(), *what.layout, what.profile));
    LKV_RETURN_IF_ERROR(
        DecodeFrame(decoder, *what.layout, out.decoded.emplace_back(out.chunk_bytes)));
    out.frame_room = std::max(out.frame_room, out.frames.back().size());
  }
  return out;
}

absl::StatusOr<DeviceMemory> UploadChunks(const BenchData& data, size_t count) {
  LKV_ASSIGN_OR_RETURN(DeviceMemory out, DeviceMemory::Make(count * data.chunk_bytes));
  for (size_t i = 0; i < count; ++i) {
    LKV_RETURN_IF_ERROR(CudaStatus(
        cudaMemcpy(out.data() + i * data.chunk_bytes, data.what.chunks[data.Of(i)].data(),
                   data.chunk_bytes, cudaMemcpyHostToDevice),
        "upload of a chunk"));
  }
  return out;
}

CudaEncodeChunk BenchEncodeChunk(const BenchData& data, size_t i, std::byte* raw_dev) {
  return {kTokens, data.Of(i) * kTokens, {}, ContiguousPlanes(data.layout(), kTokens, raw_dev), {}};
}

CudaDecodeChunk BenchDecodeChunk(const BenchData& data, ByteSpan frame, std::byte* raw_dev) {
  return {frame, ContiguousPlanes(data.layout(), kTokens, raw_dev), {}};
}

absl::Status CheckFrame(const BenchData& data, size_t i, ByteSpan frame) {
  const ByteVector& expected = data.frames[data.Of(i)];
  if (std::equal(frame.begin(), frame.end(), expected.begin(), expected.end())) {
    return absl::OkStatus();
  }
  return absl::InternalError(
      absl::StrCat("the device's frame of chunk ", i, " is not the CPU codec's; report it"));
}

absl::Status CheckDecoded(const BenchData& data, size_t i, ByteSpan raw) {
  const ByteVector& expected = data.decoded[data.Of(i)];
  if (std::equal(raw.begin(), raw.end(), expected.begin(), expected.end())) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("what the device decoded of chunk ", i, " is not the CPU codec's; report it"));
}

absl::Status CheckDecodedDev(const BenchData& data, size_t count, const std::byte* raw_dev) {
  ByteVector raw(data.chunk_bytes);
  for (size_t i = 0; i < count; ++i) {
    LKV_RETURN_IF_ERROR(CudaStatus(cudaMemcpy(raw.data(), raw_dev + i * data.chunk_bytes,
                                              data.chunk_bytes, cudaMemcpyDeviceToHost),
                                   "download of a chunk"));
    LKV_RETURN_IF_ERROR(CheckDecoded(data, i, raw));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<ByteSpan>> EncodeTo(const CudaEncodePlan& plan, const CudaArena& arena,
                                               MutableByteSpan out, uint32_t multiprocessors,
                                               cudaStream_t stream, GpuLaneTimes& times) {
  StepClock clock;
  LKV_RETURN_IF_ERROR(plan.EncodeAsync(arena, stream, multiprocessors));
  clock.Add(times.enqueue);
  LKV_RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(stream), "the encoder failed"));
  clock.Add(times.wait_kernels);
  LKV_ASSIGN_OR_RETURN(const CudaEncodedBatch batch, plan.Collect(arena));
  std::vector<ByteSpan> frames;
  for (size_t i = 0; i < batch.frames(); ++i) {
    if (batch.frame_bytes(i) > out.size()) {
      return absl::InternalError("the device's frames are larger than the CPU codec's; report it");
    }
    const MutableByteSpan frame = out.first(batch.frame_bytes(i));
    out = out.subspan(frame.size());
    LKV_RETURN_IF_ERROR(batch.DownloadAsync(arena, i, frame, stream));
    frames.push_back(frame);
  }
  clock.Add(times.collect);
  LKV_RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(stream), "a download failed"));
  clock.Add(times.wait_copies);
  return frames;
}

absl::StatusOr<GpuCopySpeeds> CudaBench::Copies() {
  LKV_ASSIGN_OR_RETURN(const DeviceMemory a, DeviceMemory::Make(kCopyBytes));
  LKV_ASSIGN_OR_RETURN(const DeviceMemory b, DeviceMemory::Make(kCopyBytes));
  LKV_ASSIGN_OR_RETURN(const PinnedMemory host, PinnedMemory::Make(kCopyBytes));
  const auto speed = [](std::byte* to, std::byte* from,
                        cudaMemcpyKind kind) -> absl::StatusOr<double> {
    LKV_ASSIGN_OR_RETURN(const double ms, EventMs([&] {
                           return CudaStatus(cudaMemcpyAsync(to, from, kCopyBytes, kind),
                                             "a copy failed");
                         }));
    return static_cast<double>(kCopyBytes) / 1e6 / ms;
  };
  GpuCopySpeeds out;
  LKV_ASSIGN_OR_RETURN(out.device, speed(a.data(), b.data(), cudaMemcpyDeviceToDevice));
  out.device *= 2;
  LKV_ASSIGN_OR_RETURN(out.up, speed(a.data(), host.data(), cudaMemcpyHostToDevice));
  LKV_ASSIGN_OR_RETURN(out.down, speed(host.data(), a.data(), cudaMemcpyDeviceToHost));
  return out;
}

absl::StatusOr<GpuCodecTimes> CudaBench::Codec(const GpuBenchCase& what, uint64_t tokens) {
  LKV_ASSIGN_OR_RETURN(const BenchData data, MakeBenchData(what));
  const size_t count = std::max<size_t>(1, tokens / kTokens);
  LKV_ASSIGN_OR_RETURN(const DeviceMemory raw, UploadChunks(data, count));
  GpuCodecTimes times;
  times.raw_bytes = count * data.chunk_bytes;
  LKV_RETURN_IF_ERROR(MeasureEncode(data, count, raw, times));
  LKV_RETURN_IF_ERROR(MeasureDecode(data, count, times));
  return times;
}

absl::StatusOr<std::unique_ptr<GpuBench>> OpenCudaBench() {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess || count == 0) {
    cudaGetLastError();
    return absl::FailedPreconditionError(
        absl::StrCat("there is no CUDA device here (",
                     error == cudaSuccess ? "none was found" : cudaGetErrorString(error),
                     "); run this on a machine with one, or use --backend auto"));
  }
  cudaDeviceProp properties{};
  LKV_RETURN_IF_ERROR(CudaStatus(cudaGetDeviceProperties(&properties, 0), "cannot ask the device"));
  return std::make_unique<CudaBench>(
      absl::StrCat(properties.name, ", ", properties.multiProcessorCount, " multiprocessors, ",
                   std::thread::hardware_concurrency(), " cores beside it"));
}

}  // namespace latticekv
