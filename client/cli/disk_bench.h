// `latticekv bench service --disk DIR`: gets of blocks that lie on disk, beside raw reads of the
// same files.
#ifndef LATTICEKV_CLIENT_CLI_DISK_BENCH_H_
#define LATTICEKV_CLIENT_CLI_DISK_BENCH_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace latticekv {

struct DiskBenchSettings {
  std::string directory;  // on the disk to measure; a folder of its own is made in it, and removed
  uint64_t bytes = 0;     // of all blocks
  uint32_t rounds = 1;
  std::vector<uint32_t> workers;
};

// One measurement of one round.
struct DiskBenchRow {
  uint32_t round = 0;
  std::string what;
  bool raw = false;
  double mb_per_s = 0;      // 10^6 bytes of records
  double cpu_s_per_gb = 0;  // of all processes
  double read_share = 0;    // bytes that the daemon read from the disk, of those served
  // Of the fastest raw reads right before it and those right after it, the mean of both; 0 of raw
  // reads themselves.
  double share_of_raw = 0;
  double share_of_fastest = 0;  // of the fastest raw reads of the round
};

// Blocks of 1 MiB, `exact` and incompressible, put and flushed; before each measurement the daemon
// is started anew and its files leave the page cache. Each is done with layers in order and with
// unordered layers, and where there is more than fills the daemon's memory, has a second row for
// what was read after that. Raw reads are measured before and after each of the service, since the
// speed of a disk drifts and what lies below it may have caches.
absl::StatusOr<std::vector<DiskBenchRow>> RunDiskBench(const DiskBenchSettings& settings);

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_CLI_DISK_BENCH_H_
