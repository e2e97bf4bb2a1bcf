// Sums of squares by channel: 32 bits hold a few rows of them, 64 bits all. Internal to
// core/codec/cpu.
#ifndef LATTICEKV_CORE_CODEC_CPU_CHANNEL_SQUARES_H_
#define LATTICEKV_CORE_CODEC_CPU_CHANNEL_SQUARES_H_

#include <cstdint>
#include <vector>

namespace latticekv {

class ChannelSquares {
 public:
  explicit ChannelSquares(uint32_t dim) : rows_(dim, 0), sums_(dim, 0) {}
  // Where a kernel adds the squares of one more row, each at most 2^28.
  uint32_t* row() {
    if (count_++ == kRows) Flush();
    return rows_.data();
  }
  const std::vector<uint64_t>& sums() {
    Flush();
    return sums_;
  }

 private:
  static constexpr int kRows = 8;
  void Flush() {
    for (size_t c = 0; c < sums_.size(); ++c) {
      sums_[c] += rows_[c];
      rows_[c] = 0;
    }
    count_ = 1;
  }
  std::vector<uint32_t> rows_;
  std::vector<uint64_t> sums_;
  int count_ = 0;  // rows asked for since the last flush
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CPU_CHANNEL_SQUARES_H_
