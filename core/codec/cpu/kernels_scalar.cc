// The kernels without any instruction set beyond the compiler's own: the specification.
#include "core/base/bytes.h"
#include "core/codec/cpu/kernels.h"
#include "core/codec/cpu/rans.h"
#include "core/codec/cpu/row_kernels.h"

namespace latticekv {
namespace {

// One lane's state with the words it takes or gives.
struct DecodingLane {
  uint32_t& x;
  const std::byte*& next;
  void Renormalise() {
    if (x >= kRansLow) return;
    x = x << 16 | LoadLe<uint16_t>(next);
    next += 2;
  }
};

uint32_t DecodeCoset(DecodingLane lane, uint32_t half_frequency) {
  const uint32_t slot = lane.x & (kProbabilityTotal - 1),
                 whole = kProbabilityTotal - half_frequency;
  const bool half = slot >= whole;
  lane.x =
      (half ? half_frequency : whole) * (lane.x >> kProbabilityBits) + slot - (half ? whole : 0);
  lane.Renormalise();
  return half;
}

int DecodeSymbol(DecodingLane lane, uint32_t table) {
  const DecodeEntry e = Tables().decode[table][lane.x & (kProbabilityTotal - 1)];
  lane.x = e.frequency() * (lane.x >> kProbabilityBits) + e.offset();
  lane.Renormalise();
  return e.symbol();
}

// Group of lane l at the window of a round.
void DecodeRound(const DecodeRun& run, const PointCode* codes, const std::byte*& next,
                 int16_t* q2) {
  uint32_t half[kLanes];
  int32_t sum[kLanes] = {}, k[kLanes];
  for (int l = 0; l < kLanes; ++l) half[l] = DecodeCoset({run.state[l], next}, run.half_frequency);
  for (uint32_t i = 0; i < 8; ++i, codes += run.stride) {
    const uint32_t last = i == 7;
    for (int l = 0; l < kLanes; ++l) {
      const bool plain = codes[l] >> kPointLowBitsShift == 0;
      const uint32_t parity = last ? 1 + (static_cast<uint32_t>(sum[l]) & 1) : 0;
      const uint32_t table = (codes[l] & 255) + (plain ? 3 * half[l] + parity : 0);
      k[l] = DecodeSymbol({run.state[l], next}, table);
    }
    for (int l = 0; l < kLanes && run.any_low_bits; ++l) {
      const uint32_t low = codes[l] >> kPointLowBitsShift;
      if (low == 0) continue;
      const uint32_t bits = low - last;
      k[l] = k[l] * (1 << bits) + static_cast<int32_t>(run.state[l] & ((1u << bits) - 1));
      run.state[l] >>= bits;
      DecodingLane{run.state[l], next}.Renormalise();
      if (last) k[l] = 2 * k[l] + (sum[l] & 1);
    }
    for (int l = 0; l < kLanes; ++l) {
      sum[l] += k[l];
      q2[8 * l + static_cast<int>(i)] = static_cast<int16_t>(2 * k[l] + static_cast<int>(half[l]));
    }
  }
}

void DecodeRounds(DecodeRun& run) {
  uint32_t phase = run.phase;
  const std::byte* next = run.next;
  int16_t* q2 = run.q2;
  for (uint32_t r = 0; r < run.rounds && next <= run.end; ++r, q2 += 8 * kLanes) {
    DecodeRound(run, run.codes + phase, next, q2);
    phase = (phase + kLanes) % run.groups;
  }
  run.next = next;
}

uint32_t EncodeSymbol(uint32_t x, uint32_t frequency, uint32_t start, uint16_t*& out) {
  if (x >> 22 >= frequency) {
    *out++ = static_cast<uint16_t>(x);
    x >>= 16;
  }
  return (x / frequency << kProbabilityBits) + x % frequency + start;
}

// `codes` backwards: lane l's are at 31 - l.
void EncodeRound(const EncodeRun& run, const EncodeCode* codes, const int16_t* q2, uint16_t*& out) {
  const uint32_t* points = Tables().points.data();
  for (int i = 7; i >= 0; --i) {
    const EncodeCode* code = codes + static_cast<uint32_t>(i) * run.stride;
    for (int l = kLanes - 1; l >= 0 && run.any_low_bits; --l) {
      const uint32_t shift = code[kLanes - 1 - l] >> kEncodeShiftAt;
      if (shift == 0) continue;
      const uint32_t bits = shift - 1 - (i == 7);
      if (bits == 0) continue;
      uint32_t& x = run.state[l];
      if (x >> (32 - bits)) {
        *out++ = static_cast<uint16_t>(x);
        x >>= 16;
      }
      x = x << bits | ((q2[8 * l + i] >> 1 >> (i == 7)) & ((1 << bits) - 1));
    }
    for (int l = kLanes - 1; l >= 0; --l) {
      const uint32_t entry = points[row_kernels::PointPlace(code[kLanes - 1 - l], q2[8 * l + i])];
      run.state[l] =
          EncodeSymbol(run.state[l], entry >> kPointFrequencyShift & 1023, entry & 1023, out);
    }
  }
  const uint32_t half = run.half_frequency, whole = kProbabilityTotal - half;
  for (int l = kLanes - 1; l >= 0; --l) {
    const bool is_half = q2[8 * l] & 1;
    run.state[l] = EncodeSymbol(run.state[l], is_half ? half : whole, is_half ? whole : 0, out);
  }
}

void EncodeRounds(EncodeRun& run) {
  for (uint32_t r = run.rounds; r-- > 0;) {
    const uint32_t group = (run.phase + r * kLanes) % run.groups;
    const uint32_t window = (run.groups - group) % run.groups;
    EncodeRound(run, run.codes + window, run.q2 + size_t{r} * 8 * kLanes, run.out);
  }
}

}  // namespace

const CpuKernels kScalarKernels = {CodecBackend::kScalar,
                                   row_kernels::LoadRowUnrotated,
                                   row_kernels::LargestBits,
                                   row_kernels::Norm,
                                   row_kernels::AddMoments,
                                   row_kernels::AddSixteenths,
                                   row_kernels::QuantizeRow,
                                   nullptr,
                                   nullptr,
                                   row_kernels::AddSquares,
                                   row_kernels::CheckRow,
                                   row_kernels::PointCost,
                                   row_kernels::RebuildRow,
                                   StoreRow,
                                   row_kernels::CastRow,
                                   row_kernels::AddErrors,
                                   row_kernels::AddRelative,
                                   row_kernels::MeasureErrors,
                                   row_kernels::MeasureRelative,
                                   EncodeRounds,
                                   DecodeRounds};

}  // namespace latticekv
