// Offload and restore: many batches at once, host work included.
#include <algorithm>
#include <array>
#include <numeric>
#include <random>
#include <thread>

#include "core/base/limits.h"
#include "core/codec/cuda/cuda_bench.h"

namespace latticekv {

namespace {

constexpr uint32_t kTokens = limits::kMaxChunkTokens;
constexpr uint32_t kBlockTokens = 16;
// Later plans may be larger than the first, which sizes a lane's memory, by this share.
constexpr size_t kSpareShare = 16;
constexpr int kCopyRuns = 5;

// A plan and working memory for it.
template <typename Plan>
struct Slot {
  Plan plan;
  DeviceMemory device;
  PinnedMemory pinned;
  uint64_t tables_id = 0;
  bool running = false;
  CudaArena arena() {
    return {device.data(), device.size(), pinned.data(), pinned.size(), &tables_id};
  }
};

// What a lane keeps from batch to batch.
template <typename PlannerType, typename Plan, size_t kSlots>
struct LaneState {
  using Planner = PlannerType;
  Planner planner;
  std::array<Slot<Plan>, kSlots> slots;
  size_t next = 0;  // slot
};
using EncodeLane = LaneState<CudaEncodePlanner, CudaEncodePlan, 1>;
// While kernels run on one batch the next is on its way: with one alone, lanes come to wait for the
// bus and for the kernels in turns.
constexpr size_t kDecodeSlots = 2;
using DecodeLane = LaneState<CudaDecodePlanner, CudaDecodePlan, kDecodeSlots>;

template <typename Lane, typename Make, typename Chunks>
absl::StatusOr<std::vector<Lane>> MakeLanes(size_t count, const Make& make, const Chunks& chunks) {
  std::vector<Lane> out;
  for (size_t i = 0; i < count; ++i) {
    absl::StatusOr<typename Lane::Planner> planner = make();
    LKV_RETURN_IF_ERROR(planner.status());
    Lane lane{*std::move(planner), {}};
    for (auto& slot : lane.slots) {
      LKV_RETURN_IF_ERROR(lane.planner.Plan(chunks, slot.plan));
      const auto spare = [](size_t bytes) { return bytes + bytes / kSpareShare; };
      LKV_ASSIGN_OR_RETURN(slot.device, DeviceMemory::Make(spare(slot.plan.device_bytes())));
      LKV_ASSIGN_OR_RETURN(slot.pinned, PinnedMemory::Make(spare(slot.plan.pinned_bytes())));
    }
    out.push_back(std::move(lane));
  }
  return out;
}

absl::Status EndDecode(Slot<CudaDecodePlan>& slot, cudaStream_t stream) {
  if (!slot.running) return absl::OkStatus();
  slot.running = false;
  LKV_RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(stream), "the decoder failed"));
  return slot.plan.Result(slot.arena());
}

// The frames are on their way before the host has looked at them; no kernel is launched until it
// has checked them all.
absl::Status StartDecode(DecodeLane& lane, uint32_t multiprocessors,
                         const std::vector<CudaDecodeChunk>& chunks, BenchLanes::Streams streams,
                         GpuLaneTimes& times) {
  StepClock clock;
  Slot<CudaDecodePlan>& slot = lane.slots[lane.next];
  cudaStream_t stream = streams[lane.next];
  lane.next = (lane.next + 1) % kDecodeSlots;
  LKV_RETURN_IF_ERROR(EndDecode(slot, stream));
  clock.Add(times.wait_kernels);
  const CudaArena arena = slot.arena();
  LKV_RETURN_IF_ERROR(lane.planner.Begin(chunks, slot.plan));
  LKV_RETURN_IF_ERROR(slot.plan.UploadFramesAsync(arena, stream));
  clock.Add(times.enqueue);
  LKV_RETURN_IF_ERROR(lane.planner.Finish(slot.plan));
  clock.Add(times.plan);
  LKV_RETURN_IF_ERROR(slot.plan.UploadTasksAsync(arena, stream));
  LKV_RETURN_IF_ERROR(slot.plan.LaunchAsync(arena, stream, multiprocessors));
  slot.running = true;
  clock.Add(times.enqueue);
  return absl::OkStatus();
}

// Work of lanes that decode the chunks of batches.
template <typename ChunksOf>
BenchLanes::Work DecodeWork(std::vector<DecodeLane>& lanes, uint32_t multiprocessors,
                            const ChunksOf& chunks_of) {
  return {[&lanes, multiprocessors, chunks_of](size_t l, size_t batch, BenchLanes::Streams streams,
                                               GpuLaneTimes& times) {
            return StartDecode(lanes[l], multiprocessors, chunks_of(batch), streams, times);
          },
          [&lanes](size_t l, BenchLanes::Streams streams, GpuLaneTimes& times) -> absl::Status {
            StepClock clock;
            for (size_t s = 0; s < kDecodeSlots; ++s) {
              LKV_RETURN_IF_ERROR(EndDecode(lanes[l].slots[s], streams[s]));
            }
            clock.Add(times.wait_kernels);
            return absl::OkStatus();
          }};
}

size_t Batches(size_t count, const GpuBenchPace& pace) {
  return (count + pace.batch_chunks - 1) / pace.batch_chunks;
}

// The device's raw chunks, stored frames and decoded chunks of a round trip.
class RoundTripBench {
 public:
  RoundTripBench(const BenchData& data, size_t count, const GpuBenchPaces& paces)
      : data_(data), count_(count), paces_(paces), frames_(count) {}

  absl::Status Prepare() {
    LKV_ASSIGN_OR_RETURN(raw_, UploadChunks(data_, count_));
    LKV_ASSIGN_OR_RETURN(back_, DeviceMemory::Make(raw_.size()));
    LKV_ASSIGN_OR_RETURN(stored_, PinnedMemory::Make(count_ * data_.frame_room));
    LKV_ASSIGN_OR_RETURN(host_, PinnedMemory::Make(raw_.size()));
    LKV_ASSIGN_OR_RETURN(offload_lanes_, BenchLanes::Make(paces_.offload.lanes, 1));
    LKV_ASSIGN_OR_RETURN(restore_lanes_, BenchLanes::Make(paces_.restore.lanes, kDecodeSlots));
    const auto encode_planner = [&] {
      return CudaEncodePlanner::Make(data_.layout(), data_.settings());
    };
    LKV_ASSIGN_OR_RETURN(
        encoders_, MakeLanes<EncodeLane>(paces_.offload.lanes, encode_planner, EncodeChunks(0)));
    GpuRoundTrip warm_up;
    LKV_RETURN_IF_ERROR(Offload(warm_up));
    const auto decode_planner = [&] {
      return CudaDecodePlanner::Make(data_.layout(), data_.what.profile);
    };
    LKV_ASSIGN_OR_RETURN(
        decoders_, MakeLanes<DecodeLane>(paces_.restore.lanes, decode_planner, DecodeChunks(0)));
    LKV_RETURN_IF_ERROR(Restore(warm_up));
    for (size_t i = 0; i < count_; ++i) LKV_RETURN_IF_ERROR(CheckFrame(data_, i, frames_[i]));
    return CheckDecodedDev(data_, count_, back_.data());
  }

  absl::Status Copies(GpuRoundTrips& out) {
    out.raw_bytes = raw_.size();
    for (int i = 0; i < kCopyRuns; ++i) {
      LKV_ASSIGN_OR_RETURN(const double down,
                           CopyMs(host_.data(), raw_.data(), cudaMemcpyDeviceToHost));
      LKV_ASSIGN_OR_RETURN(const double up,
                           CopyMs(raw_.data(), host_.data(), cudaMemcpyHostToDevice));
      out.raw_down_ms = i == 0 ? down : std::min(out.raw_down_ms, down);
      out.raw_up_ms = i == 0 ? up : std::min(out.raw_up_ms, up);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<GpuRoundTrip> Pass() {
    GpuRoundTrip out;
    LKV_RETURN_IF_ERROR(Offload(out));
    LKV_RETURN_IF_ERROR(Restore(out));
    return out;
  }

 private:
  absl::StatusOr<double> CopyMs(std::byte* to, const std::byte* from, cudaMemcpyKind kind) {
    const BenchTime begin = std::chrono::steady_clock::now();
    LKV_RETURN_IF_ERROR(CudaStatus(cudaMemcpy(to, from, raw_.size(), kind), "a copy failed"));
    LKV_RETURN_IF_ERROR(CudaStatus(cudaDeviceSynchronize(), "a copy failed"));
    return MsSince(begin);
  }

  std::vector<CudaEncodeChunk> EncodeChunks(size_t batch) const {
    std::vector<CudaEncodeChunk> out;
    const size_t begin = batch * paces_.offload.batch_chunks;
    for (size_t i = begin; i < std::min(count_, begin + paces_.offload.batch_chunks); ++i) {
      out.push_back(BenchEncodeChunk(data_, i, raw_.data() + i * data_.chunk_bytes));
    }
    return out;
  }
  std::vector<CudaDecodeChunk> DecodeChunks(size_t batch) const {
    std::vector<CudaDecodeChunk> out;
    const size_t begin = batch * paces_.restore.batch_chunks;
    for (size_t i = begin; i < std::min(count_, begin + paces_.restore.batch_chunks); ++i) {
      out.push_back(BenchDecodeChunk(data_, frames_[i], back_.data() + i * data_.chunk_bytes));
    }
    return out;
  }

  absl::Status Offload(GpuRoundTrip& out) {
    const size_t room = paces_.offload.batch_chunks * data_.frame_room;
    const auto encode = [&](size_t l, size_t batch, BenchLanes::Streams streams,
                            GpuLaneTimes& times) -> absl::Status {
      EncodeLane& lane = encoders_[l];
      Slot<CudaEncodePlan>& slot = lane.slots[0];
      StepClock clock;
      LKV_RETURN_IF_ERROR(lane.planner.Plan(EncodeChunks(batch), slot.plan));
      clock.Add(times.plan);
      const size_t at = batch * room;
      LKV_ASSIGN_OR_RETURN(const std::vector<ByteSpan> frames,
                           EncodeTo(slot.plan, slot.arena(),
                                    {stored_.data() + at, std::min(room, stored_.size() - at)},
                                    paces_.offload.multiprocessors, streams[0], times));
      std::copy(frames.begin(), frames.end(),
                frames_.begin() + static_cast<std::ptrdiff_t>(batch * paces_.offload.batch_chunks));
      return absl::OkStatus();
    };
    const BenchLanes::Work work{encode, nullptr};
    LKV_ASSIGN_OR_RETURN(out.offload_ms,
                         offload_lanes_->Run(Batches(count_, paces_.offload), work));
    out.offload_times = offload_lanes_->times();
    return absl::OkStatus();
  }

  absl::Status Restore(GpuRoundTrip& out) {
    const BenchLanes::Work work = DecodeWork(decoders_, paces_.restore.multiprocessors,
                                             [this](size_t batch) { return DecodeChunks(batch); });
    LKV_ASSIGN_OR_RETURN(out.restore_ms,
                         restore_lanes_->Run(Batches(count_, paces_.restore), work));
    out.restore_times = restore_lanes_->times();
    return absl::OkStatus();
  }

  const BenchData& data_;
  const size_t count_;
  const GpuBenchPaces paces_;
  DeviceMemory raw_, back_;
  PinnedMemory stored_, host_;
  std::vector<ByteSpan> frames_;  // [chunk]
  std::vector<EncodeLane> encoders_;
  std::vector<DecodeLane> decoders_;
  // Last, since their threads use the rest.
  std::unique_ptr<BenchLanes> offload_lanes_, restore_lanes_;
};

// A paged cache in device memory, [layer and plane][block][token][head], and chunks restored to it.
class PagedBench {
 public:
  PagedBench(const BenchData& data, size_t count) : data_(data), count_(count) {}

  absl::Status Prepare(const GpuBenchPace& pace) {
    pace_ = pace;
    const size_t blocks = count_ * kTokens / kBlockTokens;
    table_.resize(blocks);
    std::iota(table_.begin(), table_.end(), 0u);
    std::shuffle(table_.begin(), table_.end(), std::mt19937(1));
    LKV_ASSIGN_OR_RETURN(cache_, DeviceMemory::Make(count_ * data_.chunk_bytes));
    std::byte* at = cache_.data();
    for (const LayerSpec& layer : data_.layout().layers) {
      std::vector<DevicePlane>& planes = planes_.emplace_back();
      for (const PlaneSpec& plane : layer.planes) {
        planes.push_back({at, plane.token_bytes(), plane.head_dim * DTypeBytes(plane.dtype),
                          kBlockTokens * plane.token_bytes()});
        at += blocks * kBlockTokens * plane.token_bytes();
      }
    }
    LKV_ASSIGN_OR_RETURN(stored_, PinnedMemory::Make(count_ * data_.frame_room));
    for (size_t i = 0; i < count_; ++i) {
      const ByteVector& frame = data_.frames[data_.Of(i)];
      std::copy(frame.begin(), frame.end(), stored_.data() + i * data_.frame_room);
    }
    LKV_ASSIGN_OR_RETURN(lanes_, BenchLanes::Make(pace.lanes, kDecodeSlots));
    const auto planner = [&] {
      return CudaDecodePlanner::Make(data_.layout(), data_.what.profile);
    };
    LKV_ASSIGN_OR_RETURN(decoders_, MakeLanes<DecodeLane>(pace.lanes, planner, Chunks(0)));
    return absl::OkStatus();
  }

  absl::StatusOr<double> Run() {
    return lanes_->Run(Batches(count_, pace_),
                       DecodeWork(decoders_, pace_.multiprocessors,
                                  [this](size_t batch) { return Chunks(batch); }));
  }

  // Of chunk `i`, gathered block by block.
  absl::Status CheckChunk(size_t i) const {
    ByteVector got(data_.chunk_bytes);
    size_t at = 0;
    for (const std::vector<DevicePlane>& layer : planes_) {
      for (const DevicePlane& plane : layer) {
        for (size_t b = 0; b < kTokens / kBlockTokens; ++b, at += plane.block_stride) {
          const size_t block = table_[i * kTokens / kBlockTokens + b];
          LKV_RETURN_IF_ERROR(
              CudaStatus(cudaMemcpy(got.data() + at, plane.data_dev + block * plane.block_stride,
                                    plane.block_stride, cudaMemcpyDeviceToHost),
                         "download of a block"));
        }
      }
    }
    return CheckDecoded(data_, i, got);
  }

 private:
  std::vector<CudaDecodeChunk> Chunks(size_t batch) const {
    std::vector<CudaDecodeChunk> out;
    const size_t begin = batch * pace_.batch_chunks;
    for (size_t i = begin; i < std::min(count_, begin + pace_.batch_chunks); ++i) {
      out.push_back({{stored_.data() + i * data_.frame_room, data_.frames[data_.Of(i)].size()},
                     planes_,
                     {table_, kBlockTokens, i * kTokens}});
    }
    return out;
  }

  const BenchData& data_;
  const size_t count_;
  GpuBenchPace pace_;
  std::vector<uint32_t> table_;
  DeviceMemory cache_;
  std::vector<std::vector<DevicePlane>> planes_;
  PinnedMemory stored_;
  std::vector<DecodeLane> decoders_;
  std::unique_ptr<BenchLanes> lanes_;  // last, since its threads use the rest
};

}  // namespace

GpuBenchPaces CudaBench::DefaultPaces() const {
  const size_t cores = std::max(1u, std::thread::hardware_concurrency());
  // A batch to restore gets a warp for each of its tiles: chunks of Llama-3.1-8B's shape have 256.
  return {{std::clamp<size_t>(cores / 2, 2, 8), 4, 0}, {std::clamp<size_t>(cores, 4, 16), 2, 16}};
}

absl::StatusOr<GpuRoundTrips> CudaBench::RoundTrips(const GpuBenchCase& what, uint64_t tokens,
                                                    const GpuBenchPaces& paces, int runs) {
  LKV_ASSIGN_OR_RETURN(const BenchData data, MakeBenchData(what));
  RoundTripBench bench(data, std::max<size_t>(1, tokens / kTokens), paces);
  LKV_RETURN_IF_ERROR(bench.Prepare());
  GpuRoundTrips out;
  LKV_RETURN_IF_ERROR(bench.Copies(out));
  LKV_RETURN_IF_ERROR(bench.Pass().status());
  for (int i = 0; i < runs; ++i) {
    LKV_ASSIGN_OR_RETURN(out.passes.emplace_back(), bench.Pass());
  }
  return out;
}

absl::StatusOr<std::vector<double>> CudaBench::Restores(const GpuBenchCase& what, uint64_t tokens,
                                                        const GpuBenchPace& pace, int runs) {
  LKV_ASSIGN_OR_RETURN(const BenchData data, MakeBenchData(what));
  const size_t count = std::max<size_t>(1, tokens / kTokens);
  PagedBench bench(data, count);
  LKV_RETURN_IF_ERROR(bench.Prepare(pace));
  LKV_RETURN_IF_ERROR(bench.Run().status());
  for (const size_t i : {size_t{0}, count / 2, count - 1}) {
    LKV_RETURN_IF_ERROR(bench.CheckChunk(i));
  }
  std::vector<double> out;
  for (int i = 0; i < runs; ++i) {
    LKV_ASSIGN_OR_RETURN(out.emplace_back(), bench.Run());
  }
  return out;
}

}  // namespace latticekv
