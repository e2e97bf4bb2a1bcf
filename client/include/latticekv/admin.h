// Results of the operator's calls: what is stored, how well, and why something was missed.
#ifndef LATTICEKV_ADMIN_H_
#define LATTICEKV_ADMIN_H_

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "latticekv/blocks.h"
#include "latticekv/error_detail.h"

namespace latticekv {

// Times are milliseconds since the Unix epoch.
struct SessionSummary {
  std::string name_space;
  std::string name;
  uint32_t blocks = 0;
  uint64_t tokens = 0;
  uint64_t raw_bytes = 0;
  uint64_t stored_bytes = 0;
  double ratio = 0;
  int64_t created_ms = 0;
  int64_t last_used_ms = 0;
  int64_t expires_ms = 0;  // 0: never
  bool pinned = false;
  std::string model;
  uint32_t missing_blocks = 0;  // evicted since they were put
};

struct BlockSummary {
  std::string key;     // content hash, hex
  std::string parent;  // empty: the first of its sequence
  std::string name_space;
  uint64_t start_position = 0;
  uint32_t tokens = 0;
  uint64_t raw_bytes = 0;
  uint64_t stored_bytes = 0;
  PresetId preset = kDefaultPreset;
  Quality quality;
  Tier tier = Tier::kUnspecified;
  bool pinned = false;
  bool missing = false;
  uint32_t evicted_tokens = 0;
};

struct SessionDetail {
  SessionSummary summary;
  std::vector<BlockSummary> blocks;
  Layout layout;
  Digest fingerprint{};
};

struct BlockDetail {
  BlockSummary summary;
  std::string fingerprint;
  std::string model;
  std::string profile_hash;  // empty: none needed
  std::string frame_crc32c;
  std::vector<uint64_t> layer_stored_bytes;
  std::vector<std::string> sessions;
  std::vector<uint32_t> tokens;
};

// A model profile that the server keeps.
struct ProfileState {
  std::string hash;
  uint32_t version = 0;  // of one that the server learnt, from 1 on; 0: registered by a client
  bool in_use = false;   // blocks are encoded with it now
  uint64_t blocks = 0;   // stored, that refer to it
};

struct LayoutState {
  std::string fingerprint, model;
  std::vector<ProfileState> profiles;
  uint64_t learnt_tokens = 0;  // that the server learnt from since its start
  bool learning = false;
};

struct ServerStats {
  uint64_t blocks = 0, sessions = 0, layouts = 0;
  uint64_t stored_bytes = 0, raw_bytes = 0;
  double ratio = 0;
  uint64_t memory_used_bytes = 0, memory_peak_bytes = 0, memory_capacity_bytes = 0;
  uint64_t pinned_blocks = 0;
  uint64_t puts = 0, duplicate_puts = 0, gets = 0, misses = 0;
  uint64_t evicted_blocks = 0, evicted_bytes = 0, corrupt_blocks = 0;
  uint64_t encode_bytes = 0, decode_bytes = 0;
  double encode_gbps = 0, decode_gbps = 0;
  uint64_t uptime_ms = 0;
  std::string version, codec_backend;
  uint64_t open_streams = 0;
  bool draining = false;

  // The disk tier; all zero without one.
  std::string disk_state;   // "ok", "no disk" or "memory only"
  std::string disk_reason;  // a sentence, when blocks are kept in memory only
  uint64_t disk_blocks = 0, disk_used_bytes = 0, disk_peak_bytes = 0, disk_capacity_bytes = 0;
  uint64_t disk_index_bytes = 0, segments = 0;
  uint64_t evicted_to_disk = 0, promoted_blocks = 0, disk_evicted_blocks = 0;
  uint64_t durable_blocks = 0, recovered_blocks = 0, lost_blocks = 0;
  uint64_t damaged_records = 0, disk_errors = 0, journal_bytes = 0;

  // Which hardware encoded chunks and decoded layers.
  std::string gpu_state;   // "none", "on" or "off"
  std::string gpu_device;  // name and what of it is used
  std::string gpu_reason;  // a sentence, unless it is used
  uint64_t gpu_encodes = 0, gpu_decodes = 0, cpu_encodes = 0, cpu_decodes = 0;
  uint64_t gpu_batches = 0, gpu_errors = 0;
  uint64_t gpu_regions = 0, gpu_region_bytes = 0;               // of workers, mapped now
  std::vector<std::pair<std::string, uint64_t>> gpu_fallbacks;  // reason, jobs that a CPU did

  std::vector<LayoutState> layout_states;
};

struct ListRequest {
  std::string name_space;  // empty: all
  uint32_t page_size = 0;  // 0: the server's default
  std::string page_token;  // of the page before; empty: the first page
};

struct SessionPage {
  std::vector<SessionSummary> sessions;
  std::string next_page_token;  // empty: that was the last page
};

struct BlockPage {
  std::vector<BlockSummary> blocks;
  std::string next_page_token;
};

struct MissExplanation {
  ErrorReason reason = ErrorReason::kUnspecified;
  std::string message;
};

struct VerifyResult {
  uint64_t blocks_checked = 0;  // in memory
  uint64_t blocks_corrupt = 0;
  uint64_t disk_records_checked = 0;
  uint64_t disk_records_corrupt = 0;
  uint64_t disk_records_unreadable = 0;
  uint64_t disk_bytes_checked = 0;
};

}  // namespace latticekv

#endif  // LATTICEKV_ADMIN_H_
