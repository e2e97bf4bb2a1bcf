// Puts coded tiles together into the layers of frames, and takes the layers' checksums.
#include "core/codec/cuda/encode_kernels.h"

namespace latticekv::cuda {
namespace {

constexpr uint32_t kThreads = 256;
constexpr uint32_t kEveryLane = 0xFFFFFFFFu;
constexpr uint32_t kUnitHeaderSize = 9, kTileEntrySize = 6;

// Sizes and places of layers and tiles; one block.
__global__ void PlaceKernel(EncodeLaunch launch) {
  __shared__ uint64_t warp_sums[32];
  __shared__ uint64_t base;
  unsigned char* arena = launch.arena_dev;
  const auto* layers = reinterpret_cast<const EncodeLayer*>(arena + launch.layers_at);
  auto* tiles = reinterpret_cast<EncodeTile*>(arena + launch.tiles_at);
  auto* results = reinterpret_cast<LayerResult*>(arena + launch.results_at);
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (threadIdx.x == 0) base = 0;
  __syncthreads();
  for (uint32_t first = 0; first < launch.layers; first += blockDim.x) {
    const uint32_t l = first + threadIdx.x;
    uint64_t size = 0, room = 0;
    if (l < launch.layers) {
      const EncodeLayer layer = layers[l];
      size = 2 + kTileEntrySize * uint64_t{layer.tiles};
      for (uint32_t i = 0; i < layer.tiles; ++i) size += tiles[layer.first_tile + i].size_bytes;
      room = layer.gap_bytes + size;
    }
    uint64_t sum = room;
    for (int o = 1; o < 32; o *= 2) {
      const uint64_t other = __shfl_up_sync(kEveryLane, sum, o);
      if (lane >= o) sum += other;
    }
    if (lane == 31) warp_sums[warp] = sum;
    __syncthreads();
    uint64_t before = base;
    for (uint32_t w = 0; w < warp; ++w) before += warp_sums[w];
    const uint64_t end = before + sum;
    if (l < launch.layers) {
      const EncodeLayer layer = layers[l];
      const uint64_t begin = end - size;
      LayerResult r{};
      r.begin = begin;
      r.size_bytes = static_cast<uint32_t>(size);
      uint64_t at = begin + 2 + kTileEntrySize * uint64_t{layer.tiles};
      for (uint32_t i = 0; i < layer.tiles; ++i) {
        tiles[layer.first_tile + i].begin = at;
        at += tiles[layer.first_tile + i].size_bytes;
      }
      results[l] = r;
    }
    __syncthreads();
    if (threadIdx.x == blockDim.x - 1) base = end;
    __syncthreads();
  }
}

__device__ void StoreBytes(unsigned char* to, uint32_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) to[i] = static_cast<unsigned char>(value >> 8 * i);
}

// By the whole block; `from` is aligned to 2 bytes and may be read up to 4 bytes around its ends.
// Loads go ahead of stores, four a thread.
__device__ void CopyWords(unsigned char* to, const unsigned char* from, uint32_t bytes) {
  const uint32_t head = min(bytes, static_cast<uint32_t>(-reinterpret_cast<intptr_t>(to) & 3));
  const uint32_t whole = (bytes - head) / 4;
  for (uint32_t i = threadIdx.x; i < head; i += kThreads) to[i] = from[i];
  uint32_t* wide = reinterpret_cast<uint32_t*>(to + head);
  const uintptr_t source = reinterpret_cast<uintptr_t>(from + head);
  const uint32_t* aligned = reinterpret_cast<const uint32_t*>(source & ~uintptr_t{3});
  const uint32_t shift = source % 4 * 8;
  for (uint32_t first = threadIdx.x; first < whole; first += 4 * kThreads) {
    uint32_t words[4];
#pragma unroll
    for (uint32_t k = 0; k < 4; ++k) {
      const uint32_t i = first + k * kThreads;
      if (i < whole) words[k] = __funnelshift_r(aligned[i], aligned[i + 1], shift);
    }
#pragma unroll
    for (uint32_t k = 0; k < 4; ++k) {
      const uint32_t i = first + k * kThreads;
      if (i < whole) wide[i] = words[k];
    }
  }
  for (uint32_t i = head + 4 * whole + threadIdx.x; i < bytes; i += kThreads) to[i] = from[i];
}

__device__ const unsigned char* VectorAt(const unsigned char* arena, const EncodeUnit& unit,
                                         uint32_t token) {
  const TokenPlace place = reinterpret_cast<const TokenPlace*>(arena + unit.places_at)[token];
  return reinterpret_cast<const unsigned char*>(unit.src) + place.block * unit.block_stride +
         place.slot * unit.token_stride;
}

__device__ void WriteUnitHeader(unsigned char* to, const UnitResult& r, uint32_t listed) {
  to[0] = r.modes;
  to[1] = static_cast<unsigned char>(listed);
  to[2] = r.coset;
  StoreBytes(to + 3, static_cast<uint16_t>(r.step_base), 2);
  to[5] = static_cast<unsigned char>(r.sigma_base);
  to[6] = r.mean_spread | r.mean_bits << 4;
  to[7] = r.sigma_spread | r.sigma_bits << 4;
  to[8] = r.step_spread | r.step_bits << 4;
}

// A block a tile.
__global__ void __launch_bounds__(kThreads) CopyKernel(EncodeLaunch launch) {
  const unsigned char* arena = launch.arena_dev;
  const EncodeTile tile = reinterpret_cast<const EncodeTile*>(arena + launch.tiles_at)[blockIdx.x];
  const EncodeLayer layer =
      reinterpret_cast<const EncodeLayer*>(arena + launch.layers_at)[tile.layer];
  const auto* units =
      reinterpret_cast<const EncodeUnit*>(arena + launch.units_at) + tile.first_unit;
  unsigned char* out = launch.arena_dev + launch.output_at;
  if (threadIdx.x == 0) {
    const uint64_t begin =
        reinterpret_cast<const LayerResult*>(arena + launch.results_at)[tile.layer].begin;
    if (tile.index == 0) StoreBytes(out + begin, layer.tiles, 2);
    unsigned char* entry = out + begin + 2 + kTileEntrySize * tile.index;
    StoreBytes(entry, tile.units, 2);
    StoreBytes(entry + 2, tile.size_bytes, 4);
  }
  unsigned char* at = out + tile.begin;
  for (uint32_t u = 0; u < tile.units; ++u) {
    const auto* result = reinterpret_cast<const UnitResult*>(arena + units[u].result_at);
    const uint32_t listed = result->modes >> 6 & 1 ? 0 : result->raw_count;
    const auto* order = reinterpret_cast<const uint8_t*>(result + 1);
    if (threadIdx.x == 0) WriteUnitHeader(at, *result, listed);
    for (uint32_t i = threadIdx.x; i < listed; i += kThreads) at[kUnitHeaderSize + i] = order[i];
    at += kUnitHeaderSize + listed;
  }
  for (uint32_t u = 0; u < tile.units; ++u) {
    const auto* result = reinterpret_cast<const UnitResult*>(arena + units[u].result_at);
    const auto* order = reinterpret_cast<const uint8_t*>(result + 1);
    const uint32_t bytes = units[u].vector_bytes;
    // A warp a vector.
    for (uint32_t n = threadIdx.x / 32; n < result->raw_count; n += kThreads / 32) {
      const unsigned char* from = VectorAt(arena, units[u], order[n]);
      for (uint32_t i = threadIdx.x % 32; i < bytes; i += 32) at[size_t{n} * bytes + i] = from[i];
    }
    at += size_t{result->raw_count} * bytes;
  }
  if (at == out + tile.begin + tile.size_bytes) return;
  CopyWords(at, arena + tile.states_at, 128);
  CopyWords(at + 128, arena + tile.words_at + 2 * (size_t{tile.room} - tile.words), 2 * tile.words);
}

// CRC32C, reflected. Polynomials over GF(2) modulo the generator, bit 31 the constant term.
constexpr uint32_t kPolynomial = 0x82F63B78u;
// A warp takes pieces of 32 rounds of 32 words, a word a lane and round.
constexpr int kPieceRounds = 32;
constexpr int kAhead = 8;  // rounds whose words are loaded together
constexpr int64_t kPieceBytes = 32 * 4 * kPieceRounds;
constexpr uint32_t kChecksumShares = 4;  // a warp a piece for layers of up to 128 KiB

struct ChecksumConstants {
  uint32_t round[4][256];    // byte 0 to 3 of a word, times x^(32 * 32): a round later
  uint32_t lane_shift[32];   // x^(32 * (32 - lane)): behind a lane's word in the last round
  uint32_t piece_shift[32];  // x^(8 * kPieceBytes * 2^n)
  uint32_t byte_shift[32];   // x^(8 * 2^n)
};

__host__ __device__ constexpr uint32_t Multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (int i = 0; i < 32; ++i) {
    product ^= a >> 31 ? b : 0;
    a <<= 1;
    b = b >> 1 ^ (b & 1 ? kPolynomial : 0);
  }
  return product;
}

constexpr ChecksumConstants MakeChecksumConstants() {
  ChecksumConstants out{};
  out.byte_shift[0] = 1u << 23;  // x^8
  for (int i = 1; i < 32; ++i) {
    out.byte_shift[i] = Multiply(out.byte_shift[i - 1], out.byte_shift[i - 1]);
  }
  out.lane_shift[31] = out.byte_shift[2];
  for (int i = 30; i >= 0; --i) {
    out.lane_shift[i] = Multiply(out.lane_shift[i + 1], out.byte_shift[2]);
  }
  // A byte's eight coefficients are those of x^7 to x^0 from its lowest bit on, byte 0 the highest.
  for (int k = 0; k < 4; ++k) {
    for (uint32_t i = 0; i < 256; ++i) {
      out.round[k][i] = Multiply(i << 8 * k, out.byte_shift[7]);
    }
  }
  out.piece_shift[0] = out.byte_shift[12];
  for (int i = 1; i < 32; ++i) {
    out.piece_shift[i] = Multiply(out.piece_shift[i - 1], out.piece_shift[i - 1]);
  }
  return out;
}
static_assert(kPieceBytes == 1 << 12);
__device__ const ChecksumConstants kChecksum = MakeChecksumConstants();

// v * x^(8 * unit * n) with powers[i] = x^(8 * unit * 2^i).
__device__ uint32_t Shift(uint32_t v, uint64_t n, const uint32_t* powers) {
  for (int i = 0; n != 0; ++i, n >>= 1) {
    if (n & 1) v = Multiply(v, powers[i]);
  }
  return v;
}

// The word at byte `at` of `bytes`, zeros before the first byte. Reads up to 4 bytes behind it.
__device__ uint32_t WordAt(const unsigned char* bytes, int64_t at) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(bytes + at);
  const uint32_t* aligned = reinterpret_cast<const uint32_t*>(address & ~uintptr_t{3});
  const bool inside = at > -4;
  const uint32_t low = inside ? aligned[0] : 0, high = inside ? aligned[1] : 0;
  const uint32_t word = __funnelshift_r(low, high, address % 4 * 8);
  return at >= 0 || !inside ? word : word & 0xFFFFFFFFu << -8 * at;
}

// A layer's sums of errors.
__device__ void SumErrors(const EncodeLaunch& launch, const EncodeLayer& layer, LayerResult& r) {
  __shared__ unsigned long long errors[2];
  __shared__ uint32_t vectors[2], uses_profile;
  if (threadIdx.x < 2) errors[threadIdx.x] = vectors[threadIdx.x] = 0;
  if (threadIdx.x == 0) uses_profile = 0;
  __syncthreads();
  const unsigned char* arena = launch.arena_dev;
  const auto* units =
      reinterpret_cast<const EncodeUnit*>(arena + launch.units_at) + layer.first_unit;
  for (uint32_t u = threadIdx.x; u < layer.units; u += kThreads) {
    const auto& unit = *reinterpret_cast<const UnitResult*>(arena + units[u].result_at);
    atomicAdd(&errors[units[u].is_key], static_cast<unsigned long long>(unit.error_sum));
    atomicAdd(&vectors[units[u].is_key], static_cast<uint32_t>(unit.coded_count));
    if (unit.uses_profile) atomicOr(&uses_profile, 1u);
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  r.value_error_sum = errors[0];
  r.key_error_sum = errors[1];
  r.value_vectors = vectors[0];
  r.key_vectors = vectors[1];
  r.uses_profile = uses_profile;
}

// kChecksumShares blocks a layer, a warp a piece of 4 KiB counted from the layer's end: zeros before
// the layer's first byte change nothing, so that only the first piece is shorter. Each block adds
// what its pieces come to.
__global__ void __launch_bounds__(kThreads) ChecksumKernel(EncodeLaunch launch) {
  __shared__ uint32_t round[4][256];
  __shared__ uint32_t total;
  for (uint32_t i = threadIdx.x; i < 1024; i += kThreads) {
    round[i / 256][i % 256] = kChecksum.round[i / 256][i % 256];
  }
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  auto& result = reinterpret_cast<LayerResult*>(launch.arena_dev + launch.results_at)[blockIdx.x];
  const unsigned char* bytes = launch.arena_dev + launch.output_at + result.begin;
  const int64_t size = result.size_bytes;
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t lane_shift = kChecksum.lane_shift[lane];
  uint32_t sum = 0;
  for (int64_t piece = threadIdx.x / 32 * kChecksumShares + blockIdx.y; piece * kPieceBytes < size;
       piece += kThreads / 32 * kChecksumShares) {
    const int64_t begin = size - (piece + 1) * kPieceBytes + 4 * static_cast<int64_t>(lane);
    uint32_t crc = 0;
#pragma unroll 1
    for (int n = 0; n < kPieceRounds; n += kAhead) {
      uint32_t words[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) words[i] = WordAt(bytes, begin + 128 * (n + i));
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const uint32_t v = crc ^ words[i];
        crc = n + i == kPieceRounds - 1 ? v
                                        : round[0][v & 255] ^ round[1][v >> 8 & 255] ^
                                              round[2][v >> 16 & 255] ^ round[3][v >> 24];
      }
    }
    crc = __reduce_xor_sync(kEveryLane, Multiply(crc, lane_shift));
    if (lane == 0) sum ^= Shift(crc, piece, kChecksum.piece_shift);
  }
  if (lane == 0) atomicXor(&total, sum);
  __syncthreads();
  if (threadIdx.x == 0) {
    if (blockIdx.y == 0) total ^= ~Shift(0xFFFFFFFFu, size, kChecksum.byte_shift);
    atomicXor(&result.crc32c, total);
  }
  if (blockIdx.y > 0) return;
  SumErrors(launch,
            reinterpret_cast<const EncodeLayer*>(launch.arena_dev + launch.layers_at)[blockIdx.x],
            result);
}

__global__ void __launch_bounds__(kThreads) GatherKernel(EncodeLaunch launch) {
  const GatherTask task =
      reinterpret_cast<const GatherTask*>(launch.arena_dev + launch.gathers_at)[blockIdx.x];
  const auto* places = reinterpret_cast<const TokenPlace*>(launch.arena_dev + task.places_at);
  unsigned char* out = launch.arena_dev + task.out_at;
  for (uint32_t n = threadIdx.x / 32; n < task.tokens * task.heads; n += kThreads / 32) {
    const TokenPlace place = places[n / task.heads];
    const unsigned char* from = reinterpret_cast<const unsigned char*>(task.src) +
                                place.block * task.block_stride + place.slot * task.token_stride +
                                n % task.heads * task.head_stride;
    unsigned char* to = out + size_t{n} * task.vector_bytes;
    for (uint32_t i = threadIdx.x % 32; i < task.vector_bytes; i += 32) to[i] = from[i];
  }
}

}  // namespace

cudaError_t LaunchAssembly(const EncodeLaunch& launch, cudaStream_t stream) {
  if (launch.layers > 0) {
    PlaceKernel<<<1, 512, 0, stream>>>(launch);
    if (launch.tiles > 0) CopyKernel<<<launch.tiles, kThreads, 0, stream>>>(launch);
    ChecksumKernel<<<dim3(launch.layers, kChecksumShares), kThreads, 0, stream>>>(launch);
  }
  if (launch.gathers > 0) GatherKernel<<<launch.gathers, kThreads, 0, stream>>>(launch);
  return cudaGetLastError();
}

}  // namespace latticekv::cuda
