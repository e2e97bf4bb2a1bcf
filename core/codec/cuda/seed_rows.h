// What one thread of the seed stages' kernels does, for device and host code alike: a test runs
// every thread on the CPU and compares with the scalar codec. Internal to core/codec/cuda.
#ifndef LATTICEKV_CORE_CODEC_CUDA_SEED_ROWS_H_
#define LATTICEKV_CORE_CODEC_CUDA_SEED_ROWS_H_

#include <cstdint>

#include "core/codec/cuda/decode_tasks.h"
#include "core/codec/cuda/seed_tasks.h"
#include "core/codec/seed_arithmetic.h"

#ifdef __CUDACC__
#define LKV_HOST_DEVICE __host__ __device__
#else
#define LKV_HOST_DEVICE
#endif

namespace latticekv::cuda {

template <typename T>
LKV_HOST_DEVICE inline T* ArenaArray(unsigned char* arena, uint64_t at) {
  return reinterpret_cast<T*>(arena + at);
}

LKV_HOST_DEVICE inline unsigned char* SeedVector(const SeedUnit& u, unsigned char* arena,
                                                 uint32_t token) {
  const TokenPlace place = ArenaArray<const TokenPlace>(arena, u.places_at)[token];
  return reinterpret_cast<unsigned char*>(u.data + place.block * u.block_stride +
                                          place.slot * u.token_stride);
}

// Canonical channel -> channel of the layout.
LKV_HOST_DEVICE inline uint32_t SeedChannel(const SeedUnit& u, uint32_t c) {
  if (!u.interleaved || c >= 2u * u.pairs) return c;
  return c < u.pairs ? 2 * c : 2 * (c - u.pairs) + 1;
}

LKV_HOST_DEVICE inline float SeedLoad(const SeedUnit& u, const unsigned char* vector, uint32_t c) {
  if (u.element_bytes == 4) return reinterpret_cast<const float*>(vector)[c];
  const uint16_t bits = reinterpret_cast<const uint16_t*>(vector)[c];
  return u.is_bf16 ? Bf16ToFloat(bits) : HalfToFloat(bits);
}

LKV_HOST_DEVICE inline void SeedStore(const SeedUnit& u, float v, unsigned char* vector,
                                      uint32_t c) {
  if (u.element_bytes == 4) {
    reinterpret_cast<uint32_t*>(vector)[c] = FloatToStored(v);
  } else {
    reinterpret_cast<uint16_t*>(vector)[c] = u.is_bf16 ? FloatToBf16(v) : FloatToHalf(v);
  }
}

// What a decoder will have stored, as a float.
LKV_HOST_DEVICE inline float SeedThroughDtype(const SeedUnit& u, float v) {
  if (u.element_bytes == 4) return FloatOf(FloatToStored(v));
  return u.is_bf16 ? Bf16ToFloat(FloatToBf16(v)) : HalfToFloat(FloatToHalf(v));
}

LKV_HOST_DEVICE inline const SinCos* SeedAngles(const SeedUnit& u, unsigned char* arena,
                                                uint32_t token) {
  return ArenaArray<const SinCos>(arena, u.rope_at) + uint64_t{token} * u.pairs;
}

// Rebuilds a row in canonical order.
LKV_HOST_DEVICE inline void SeedRebuild(const SeedUnit& u, unsigned char* arena, uint32_t row,
                                        const SinCos* angles, float* x) {
  const uint32_t dim = u.dim, group = u.group;
  ReconstructSeedRow(ArenaArray<const int8_t>(arena, u.points_at) + uint64_t{row} * dim,
                     ArenaArray<const uint16_t>(arena, u.scales_at) + row * (dim / group), dim,
                     group, angles, u.pairs, x);
}

struct SeedRowResult {
  bool raw;
  uint64_t error;  // squared, of a row that is not raw
};

// Encodes one row, the points of which are not yet differences. `x` is scratch, [dim].
LKV_HOST_DEVICE inline SeedRowResult EncodeSeedRow(const SeedUnit& u, unsigned char* arena,
                                                   uint32_t row, float* x) {
  const uint32_t dim = u.dim, group = u.group;
  const uint32_t token = ArenaArray<const uint8_t>(arena, u.order_at)[row];
  const unsigned char* vector = SeedVector(u, arena, token);
  const SinCos* angles = SeedAngles(u, arena, token);
  bool finite = true;
  for (uint32_t c = 0; c < dim; ++c) {
    x[c] = SeedLoad(u, vector, SeedChannel(u, c));
    finite = finite && IsFinite(x[c]);
  }
  Unrotate(angles, u.pairs, x);
  // Sums of huge f32 values may leave the range of a float; the rows' other checks see that.
  if (!finite ||
      !latticekv::EncodeSeedRow(x, dim, group, u.bound,
                                ArenaArray<uint16_t>(arena, u.scales_at) + row * (dim / group),
                                ArenaArray<int8_t>(arena, u.points_at) + uint64_t{row} * dim)) {
    return {true, 0};
  }
  SeedRebuild(u, arena, row, angles, x);
  const float* energy = ArenaArray<const float>(arena, u.energy_at);
  SeedRowError error;
  for (uint32_t c = 0; c < dim; ++c) {
    error.Add(SeedLoad(u, vector, SeedChannel(u, c)), SeedThroughDtype(u, x[c]),
              u.has_energy ? energy[c] : 1.0f);
  }
  return {false, error.Squared(dim, u.has_energy)};
}

// Decodes one row, the points of which are sums again. `x` is scratch, [dim].
LKV_HOST_DEVICE inline void DecodeSeedRow(const SeedUnit& u, unsigned char* arena, uint32_t row,
                                          float* x) {
  const uint32_t token = ArenaArray<const uint8_t>(arena, u.order_at)[row];
  SeedRebuild(u, arena, row, SeedAngles(u, arena, token), x);
  unsigned char* vector = SeedVector(u, arena, token);
  for (uint32_t c = 0; c < u.dim; ++c) SeedStore(u, x[c], vector, SeedChannel(u, c));
}

// The points of one channel become differences to the row before, modulo 256.
LKV_HOST_DEVICE inline void TakeSeedDifferences(const SeedUnit& u, unsigned char* arena,
                                                uint32_t channel) {
  int8_t* points = ArenaArray<int8_t>(arena, u.points_at) + channel;
  int8_t before = 0;
  for (uint32_t row = 0; row < u.rows; ++row, points += u.dim) {
    const int8_t point = *points;
    *points = static_cast<int8_t>(point - before);
    before = point;
  }
}

// The inverse, if the unit has differences. False when a point is out of range.
LKV_HOST_DEVICE inline bool SumSeedDifferences(const SeedUnit& u, unsigned char* arena,
                                               uint32_t channel) {
  int8_t* points = ArenaArray<int8_t>(arena, u.points_at) + channel;
  const int bound = u.bound;
  int8_t sum = 0;
  bool good = true;
  for (uint32_t row = 0; row < u.rows; ++row, points += u.dim) {
    sum = static_cast<int8_t>(u.token_delta ? *points + sum : *points);
    *points = sum;
    good = good && sum >= -bound && sum <= bound;
  }
  return good;
}

// Threads and scratch memory of the kernels that take a row a thread.
inline constexpr uint32_t kSeedScratchBytes = 48 << 10;  // of a block: what needs no leave
inline constexpr uint32_t kSeedThreads = 256;            // most of a block

// Floats of a thread's scratch: odd, so that a warp's threads are in banks of their own.
constexpr uint32_t SeedPitch(uint32_t max_dim) { return max_dim | 1; }
// Threads of a block: whole warps where there is room for one.
constexpr uint32_t SeedRowThreads(uint32_t max_dim) {
  const uint32_t room = kSeedScratchBytes / (4 * SeedPitch(max_dim));
  if (room < 32) return room;
  return room < kSeedThreads ? room / 32 * 32 : kSeedThreads;
}

// Which thread of a launch this is.
struct SeedThread {
  uint32_t block, blocks;
  uint32_t thread, threads;
};

// Rows of a unit are dealt to blocks in parts of a row a thread; the last may have rows that the
// unit has not.
struct SeedPart {
  uint32_t unit, row;
};
LKV_HOST_DEVICE inline uint32_t SeedParts(const SeedLaunch& launch, const SeedThread& at) {
  return launch.units * ((launch.max_rows + at.threads - 1) / at.threads);
}
LKV_HOST_DEVICE inline SeedPart SeedPartAt(const SeedLaunch& launch, const SeedThread& at,
                                           uint32_t n) {
  const uint32_t parts = (launch.max_rows + at.threads - 1) / at.threads;
  return {n / parts, n % parts * at.threads + at.thread};
}

template <typename T>
LKV_HOST_DEVICE inline void SeedAdd(T* to, T v) {
#ifdef __CUDA_ARCH__
  atomicAdd(to, v);
#else
  *to += v;
#endif
}

// The kernels' bodies. `x` is the thread's scratch, [SeedPitch].
LKV_HOST_DEVICE inline void EncodeSeedRows(const SeedLaunch& launch, const SeedThread& at,
                                           float* x) {
  const auto* units = ArenaArray<const SeedUnit>(launch.arena_dev, launch.units_at);
  auto* results = ArenaArray<SeedResult>(launch.arena_dev, launch.results_at);
  for (uint32_t n = at.block; n < SeedParts(launch, at); n += at.blocks) {
    const SeedPart part = SeedPartAt(launch, at, n);
    if (part.row >= units[part.unit].rows) continue;
    const SeedRowResult r = EncodeSeedRow(units[part.unit], launch.arena_dev, part.row, x);
    SeedResult& result = results[part.unit];
    if (r.raw) {
      SeedAdd(&result.raw_rows, 1u);
    } else {
      SeedAdd(&result.error_sum, static_cast<unsigned long long>(r.error));
    }
  }
}

LKV_HOST_DEVICE inline void DecodeSeedRows(const SeedLaunch& launch, const SeedThread& at,
                                           float* x) {
  const auto* units = ArenaArray<const SeedUnit>(launch.arena_dev, launch.units_at);
  for (uint32_t n = at.block; n < SeedParts(launch, at); n += at.blocks) {
    const SeedPart part = SeedPartAt(launch, at, n);
    if (part.row >= units[part.unit].rows) continue;
    DecodeSeedRow(units[part.unit], launch.arena_dev, part.row, x);
  }
}

LKV_HOST_DEVICE inline void TakeAllSeedDifferences(const SeedLaunch& launch, const SeedThread& at) {
  const auto* units = ArenaArray<const SeedUnit>(launch.arena_dev, launch.units_at);
  for (uint32_t n = at.block; n < launch.units; n += at.blocks) {
    if (!units[n].token_delta) continue;
    for (uint32_t c = at.thread; c < units[n].dim; c += at.threads) {
      TakeSeedDifferences(units[n], launch.arena_dev, c);
    }
  }
}

LKV_HOST_DEVICE inline void SumAllSeedDifferences(const SeedLaunch& launch, const SeedThread& at) {
  const auto* units = ArenaArray<const SeedUnit>(launch.arena_dev, launch.units_at);
  auto* damaged = ArenaArray<uint32_t>(launch.arena_dev, launch.results_at);
  for (uint32_t n = at.block; n < launch.units; n += at.blocks) {
    for (uint32_t c = at.thread; c < units[n].dim; c += at.threads) {
      if (!SumSeedDifferences(units[n], launch.arena_dev, c)) damaged[units[n].chunk] = 1;
    }
  }
}

}  // namespace latticekv::cuda

#endif  // LATTICEKV_CORE_CODEC_CUDA_SEED_ROWS_H_
