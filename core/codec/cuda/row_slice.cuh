// How lanes of a warp share the rows of a unit, and what they load and rotate of them. Internal to
// core/codec/cuda.
//
// A row is cut into slices. A paired slice is 16 channels: the first and second halves of eight
// rotary pairs, or two groups of 8 that are not rotated, so that a lane rotates without its
// neighbours. A plain slice is one group of 8 whose partners lie in other slices.
#ifndef LATTICEKV_CORE_CODEC_CUDA_ROW_SLICE_CUH_
#define LATTICEKV_CORE_CODEC_CUDA_ROW_SLICE_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/codec/cuda/encode_tasks.h"
#include "core/codec/cuda/intrinsics.cuh"

namespace latticekv::cuda {

__device__ inline float LoadElement(const EncodeUnit& u, const unsigned char* row, uint32_t c) {
  if (u.element_bytes == 4) return reinterpret_cast<const float*>(row)[c];
  const uint16_t bits = reinterpret_cast<const uint16_t*>(row)[c];
  if (u.is_bf16) return __uint_as_float(static_cast<uint32_t>(bits) << 16);
  return __half2float(__ushort_as_half(bits));
}

// Eight elements from `c` on.
__device__ inline void LoadEight(const EncodeUnit& u, const unsigned char* row, uint32_t c,
                                 float* out) {
  if (!u.wide_loads) {
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = LoadElement(u, row, c + i);
  } else if (u.element_bytes == 4) {
    const float4* from = reinterpret_cast<const float4*>(row + 4 * c);
    const float4 low = from[0], high = from[1];
    out[0] = low.x, out[1] = low.y, out[2] = low.z, out[3] = low.w;
    out[4] = high.x, out[5] = high.y, out[6] = high.z, out[7] = high.w;
  } else {
    const uint4 v = *reinterpret_cast<const uint4*>(row + 2 * c);
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (u.is_bf16) {
        out[2 * i] = __uint_as_float(words[i] << 16);
        out[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
      } else {
        const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&words[i]));
        out[2 * i] = pair.x;
        out[2 * i + 1] = pair.y;
      }
    }
  }
}

// What a decoder will have stored in the output's dtype, as a float.
__device__ inline float ThroughDtype(const EncodeUnit& u, float v) {
  if (u.element_bytes == 4) return v;
  if (u.is_bf16) return __bfloat162float(__float2bfloat16_rn(v));
  return __half2float(__float2half_rn(fminf(fmaxf(v, -65504.0f), 65504.0f)));
}

// Canonical channel -> channel of the layout.
__device__ inline uint32_t LayoutChannel(const EncodeUnit& u, uint32_t c) {
  if (!u.interleaved || c >= 2u * u.pairs) return c;
  return c < u.pairs ? 2 * c : 2 * (c - u.pairs) + 1;
}

template <bool kPaired>
struct Slice {
  static constexpr int kWidth = kPaired ? 16 : 8;
  static constexpr int kGroups = kPaired ? 2 : 1;

  uint32_t channel[kGroups];  // canonical, first of each group
  bool rotated;
  float x[kWidth];  // as stored, canonical order
  float y[kWidth];  // before rotary embedding

  __device__ uint32_t Channel(int i) const { return channel[i / 8] + i % 8; }

  // Places the slice `j` of a row.
  __device__ void MoveTo(const EncodeUnit& u, uint32_t j) {
    if constexpr (kPaired) {
      const uint32_t pair_groups = u.pairs / 8u;
      rotated = j < pair_groups;
      channel[0] = 8 * (rotated ? j : 2 * j);
      channel[1] = channel[0] + (rotated ? u.pairs : 8);
    } else {
      channel[0] = 8 * j;
      rotated = u.pairs > 0 && channel[0] < 2u * u.pairs;
    }
  }

  __device__ void Load(const EncodeUnit& u, const unsigned char* row, const float2* angles) {
    if constexpr (kPaired) {
      if (rotated && u.interleaved) {
        float woven[16];
        LoadEight(u, row, 2 * channel[0], woven);
        LoadEight(u, row, 2 * channel[0] + 8, woven + 8);
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = woven[2 * i], x[8 + i] = woven[2 * i + 1];
      } else {
        LoadEight(u, row, channel[0], x);
        LoadEight(u, row, channel[1], x + 8);
      }
#pragma unroll
      for (int i = 0; i < 16; ++i) y[i] = x[i];
      if (!rotated) return;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float2 r = angles[channel[0] + i];
        y[i] = __fadd_rn(__fmul_rn(x[i], r.x), __fmul_rn(x[8 + i], r.y));
        y[8 + i] = __fsub_rn(__fmul_rn(x[8 + i], r.x), __fmul_rn(x[i], r.y));
      }
    } else {
      for (int i = 0; i < 8; ++i) {
        const uint32_t c = channel[0] + i, pairs = u.pairs;
        x[i] = LoadElement(u, row, LayoutChannel(u, c));
        y[i] = x[i];
        if (c >= 2 * pairs) continue;
        const bool first = c < pairs;
        const float other = LoadElement(u, row, LayoutChannel(u, first ? c + pairs : c - pairs));
        const float2 r = angles[first ? c : c - pairs];
        y[i] = first ? __fadd_rn(__fmul_rn(x[i], r.x), __fmul_rn(other, r.y))
                     : __fsub_rn(__fmul_rn(x[i], r.x), __fmul_rn(other, r.y));
      }
    }
  }
};

}  // namespace latticekv::cuda

#endif  // LATTICEKV_CORE_CODEC_CUDA_ROW_SLICE_CUH_
