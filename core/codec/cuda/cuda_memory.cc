#include "core/codec/cuda/cuda_memory.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/codec/cuda/arena_layout.h"

namespace latticekv {

absl::Status CudaStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string text = absl::StrCat("CUDA: ", what, ": ", cudaGetErrorString(error));
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(text);
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) {
    return absl::FailedPreconditionError(text);
  }
  return absl::InternalError(text);
}

absl::StatusOr<uint32_t> Multiprocessors() {
  int device = 0, count = 0;
  LKV_RETURN_IF_ERROR(CudaStatus(cudaGetDevice(&device), "no device"));
  LKV_RETURN_IF_ERROR(
      CudaStatus(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
                 "cannot ask the device"));
  return static_cast<uint32_t>(count);
}

absl::Status CheckArena(const CudaArena& arena, size_t device_bytes, size_t pinned_bytes) {
  const bool enough = arena.device_dev != nullptr && arena.pinned != nullptr &&
                      arena.device_bytes >= device_bytes && arena.pinned_bytes >= pinned_bytes;
  if (!enough) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the arena has ", arena.device_bytes, " bytes on the device and ", arena.pinned_bytes,
        " pinned; the batch needs ", device_bytes, " and ", pinned_bytes));
  }
  if (reinterpret_cast<uintptr_t>(arena.device_dev) % 256 != 0 ||
      reinterpret_cast<uintptr_t>(arena.pinned) % 256 != 0) {
    return absl::InvalidArgumentError("the arena must be aligned to 256 bytes");
  }
  return absl::OkStatus();
}

std::shared_ptr<const ArenaTables> MakeArenaTables(ByteVector bytes) {
  static std::atomic<uint64_t> ids = 0;
  bytes.resize(RoundUp(bytes.size(), kArenaAlignment));
  return std::make_shared<const ArenaTables>(ArenaTables{++ids, std::move(bytes)});
}

absl::Status UploadTasks(const CudaArena& arena, const ArenaTables& tables, ByteSpan tasks,
                         uint64_t tasks_at, cudaStream_t stream) {
  const auto upload = [&](uint64_t to, ByteSpan bytes, std::byte* pinned) {
    if (bytes.empty()) return absl::OkStatus();
    std::memcpy(pinned, bytes.data(), bytes.size());
    return CudaStatus(cudaMemcpyAsync(arena.device_dev + to, pinned, bytes.size(),
                                      cudaMemcpyHostToDevice, stream),
                      "upload of tasks");
  };
  if (arena.tables_id == nullptr || *arena.tables_id != tables.id) {
    if (arena.tables_id != nullptr) *arena.tables_id = 0;
    LKV_RETURN_IF_ERROR(upload(0, tables.bytes, arena.pinned));
    if (arena.tables_id != nullptr) *arena.tables_id = tables.id;
  }
  return upload(tasks_at, tasks, arena.pinned + tables.bytes.size());
}

std::vector<std::vector<DevicePlane>> ContiguousPlanes(const Layout& layout, uint32_t tokens,
                                                       uint32_t first_layer, uint32_t end_layer,
                                                       std::byte* data_dev) {
  std::vector<std::vector<DevicePlane>> out(layout.layers.size());
  for (uint32_t l = first_layer; l < end_layer; ++l) {
    for (const PlaneSpec& plane : layout.layers[l].planes) {
      out[l].push_back(
          {data_dev, plane.token_bytes(), plane.head_dim * DTypeBytes(plane.dtype), 0});
      data_dev += plane.token_bytes() * tokens;
    }
  }
  return out;
}

std::vector<std::vector<DevicePlane>> ContiguousPlanes(const Layout& layout, uint32_t tokens,
                                                       std::byte* data_dev) {
  return ContiguousPlanes(layout, tokens, 0, static_cast<uint32_t>(layout.layers.size()), data_dev);
}

absl::Status CheckDevicePlanes(const Layout& layout,
                               const std::vector<std::vector<DevicePlane>>& planes,
                               uint32_t first_layer, uint32_t end_layer) {
  if (planes.size() != layout.layers.size()) {
    return absl::InvalidArgumentError(absl::StrCat("the chunk's planes have ", planes.size(),
                                                   " layers, the layout ", layout.layers.size()));
  }
  for (size_t l = first_layer; l < end_layer; ++l) {
    const std::vector<PlaneSpec>& specs = layout.layers[l].planes;
    if (planes[l].size() != specs.size()) {
      return absl::InvalidArgumentError(absl::StrCat("layer ", l, " of the chunk has ",
                                                     planes[l].size(), " planes, the layout ",
                                                     specs.size()));
    }
    for (size_t p = 0; p < specs.size(); ++p) {
      const DevicePlane& plane = planes[l][p];
      const uint64_t all = reinterpret_cast<uintptr_t>(plane.data_dev) | plane.token_stride |
                           plane.head_stride | plane.block_stride;
      if (plane.data_dev == nullptr || all % DTypeBytes(specs[p].dtype) != 0) {
        return absl::InvalidArgumentError(absl::StrCat("the memory of layer ", l, " plane '",
                                                       specs[p].name,
                                                       "' is null or not aligned to its elements"));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status AppendPlaces(const BlockTable& table, uint32_t tokens,
                          std::vector<cuda::TokenPlace>& places) {
  if (table.block_tokens != 0 &&
      (table.first_token > limits::kMaxPosition ||
       table.first_token + tokens > uint64_t{table.blocks.size()} * table.block_tokens)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the block table of ", table.blocks.size(), " blocks of ", table.block_tokens,
                     " tokens does not hold the chunk's ", tokens, " tokens from token ",
                     table.first_token, " on"));
  }
  for (uint32_t t = 0; t < tokens; ++t) {
    if (table.block_tokens == 0) {
      places.push_back({0, t});
    } else {
      const uint64_t at = table.first_token + t;
      places.push_back(
          {table.blocks[at / table.block_tokens], static_cast<uint32_t>(at % table.block_tokens)});
    }
  }
  return absl::OkStatus();
}

absl::Status DownloadPlane(const PlaneSpec& spec, const DevicePlane& plane,
                           std::span<const cuda::TokenPlace> places, MutableByteSpan out) {
  const size_t vector_bytes = spec.head_dim * DTypeBytes(spec.dtype);
  const size_t row_bytes = spec.heads * vector_bytes;
  const bool heads_follow = spec.heads == 1 || plane.head_stride == vector_bytes;
  const size_t pieces = heads_follow ? 1 : spec.heads;
  const size_t piece_bytes = row_bytes / pieces;
  for (size_t t = 0; t < places.size();) {
    // As many tokens of a block as follow one another.
    size_t end = t + 1;
    while (end < places.size() && plane.token_stride >= piece_bytes &&
           places[end].block == places[t].block && places[end].slot == places[t].slot + (end - t)) {
      ++end;
    }
    const std::byte* from =
        plane.data_dev + places[t].block * plane.block_stride + places[t].slot * plane.token_stride;
    for (size_t p = 0; p < pieces; ++p) {
      LKV_RETURN_IF_ERROR(CudaStatus(
          cudaMemcpy2D(out.data() + t * row_bytes + p * piece_bytes, row_bytes,
                       from + p * plane.head_stride, std::max(plane.token_stride, piece_bytes),
                       piece_bytes, end - t, cudaMemcpyDefault),
          "download of a plane"));
    }
    t = end;
  }
  return absl::OkStatus();
}

}  // namespace latticekv
