// The daemon without its network: store, layouts, sessions, codec threads, joined.
#ifndef LATTICEKV_SERVER_ENGINE_H_
#define LATTICEKV_SERVER_ENGINE_H_

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "core/base/buffer_pool.h"
#include "core/base/limits.h"
#include "core/codec/gpu/gpu_executor.h"
#include "core/store/journal.h"
#include "core/store/memory_budget.h"
#include "core/store/tiered_store.h"
#include "server/block_catalog.h"
#include "server/codec_pool.h"
#include "server/config.h"
#include "server/gpu_region.h"
#include "server/layout_registry.h"
#include "server/metrics.h"
#include "server/profile_learning.h"
#include "server/read_pool.h"
#include "server/session_registry.h"
#include "server/start_phases.h"
#include "server/stream_monitor.h"
#include "server/upload_admission.h"

namespace latticekv {

inline constexpr std::string_view kDefaultNamespace = "default";

// A block that can be served.
struct FoundBlock {
  StoredBlockPtr block;
  BlockMetadata metadata;
};

// Thread-safe.
class CacheEngine {
 public:
  static absl::StatusOr<std::unique_ptr<CacheEngine>> Create(const ServerConfig& config);
  ~CacheEngine();

  const ServerConfig& config() const { return config_; }
  TieredStore& store() { return *store_; }
  LayoutRegistry& layouts() { return layouts_; }
  BlockCatalog& catalog() { return *catalog_; }
  SessionRegistry& sessions() { return sessions_; }
  UploadAdmission& admission() { return *admission_; }
  CodecPool& codec_pool() { return *codec_pool_; }
  ReadPool& read_pool() { return *read_pool_; }
  // Of the blocks that requests under way bring in from disk whole.
  MemoryBudget& promotions() { return promotions_; }
  // Null: CPUs do everything, and gpu_absence() says why.
  GpuExecutor* gpu() { return gpu_.get(); }
  const std::string& gpu_absence() const { return gpu_absence_; }
  GpuRegionLeases& gpu_regions() { return gpu_regions_; }
  ProfileLearning& learning() { return *learning_; }
  // Buffers that payloads lie in until they are encoded.
  BufferPool& staging() { return staging_; }
  StreamMonitor& monitor() { return *monitor_; }
  // Of the attention mass that waits with its blocks for their payload.
  MemoryBudget& mass_budget() { return mass_budget_; }
  Metrics& metrics() { return metrics_; }
  const Clock& clock() const { return *config_.clock; }
  int64_t start_ms() const { return start_ms_; }
  StartPhases& start_phases() { return start_phases_; }

  // Health of disk and journal together: why the daemon keeps in memory only, if it does.
  StoreHealth DiskHealth();
  JournalStats journal_stats() const { return journal_ ? journal_->Stats() : JournalStats(); }
  // `listener` is told now and at every change whether the disk takes writes (true without a disk).
  // Empty: nobody.
  void SetDiskListener(std::function<void(bool)> listener);
  // `listener` is told when the GPU is not used any more. Empty: nobody.
  void SetGpuOffListener(std::function<void()> listener);
  // `done` is told when layouts and sessions as they are now survive power loss.
  void WhenStateDurable(Journal::Done done);
  // Writes what only memory holds to disk. FAILED_PRECONDITION without a disk.
  absl::Status Flush();
  // Long work that reads the disk, one at a time.
  CodecPool& background() { return *background_; }
  bool stopping() const { return stopping_.load(); }

  bool draining() const { return draining_.load(); }
  // No new uploads from now on. Idempotent.
  void StartDrain() { draining_.store(true); }

  // Key of a block of the caller's tenant.
  BlockKey KeyOf(std::string_view name_space, const Digest& content_hash) const;
  // The block with its description, without marking it as used; nothing when absent. A block whose
  // description is damaged is dropped as corrupt.
  std::optional<FoundBlock> Find(const BlockKey& key);
  // The same for what the store's Peek gave; null: nothing.
  std::optional<FoundBlock> Describe(StoredBlockPtr block);
  // Counts a corrupt block and drops it, unless it was replaced by another meanwhile.
  void DropCorrupt(const StoredBlockPtr& block, std::string_view why);
  // Removes a block; false when absent. `why` is kept for ExplainMiss.
  bool Remove(const BlockKey& key, Removal why);
  // Reason and sentence for a block that is not stored.
  v1::ErrorDetail ExplainAbsence(const BlockKey& key) const;

 private:
  explicit CacheEngine(const ServerConfig& config);

  // Reads the journal, and from then on writes every change into it.
  absl::Status OpenJournal();
  // Tells the catalog of the blocks that were found on disk.
  void FillCatalog();
  void WatchDiskHealth();
  // An error only where the configuration insists on a device that is not there.
  absl::Status StartGpu();
  void DropUnusedProfiles();

  const ServerConfig config_;
  const int64_t start_ms_;
  StartPhases start_phases_;
  Mutex health_mutex_;
  bool disk_ok_ LKV_GUARDED_BY(health_mutex_) = true;
  // What the log has said of the store's counters.
  uint64_t damaged_told_ LKV_GUARDED_BY(health_mutex_) = 0;
  uint64_t lost_told_ LKV_GUARDED_BY(health_mutex_) = 0;
  bool settled_told_ LKV_GUARDED_BY(health_mutex_) = false;
  std::function<void(bool)> disk_listener_ LKV_GUARDED_BY(health_mutex_);
  std::function<void()> gpu_off_listener_ LKV_GUARDED_BY(health_mutex_);
  std::atomic<bool> draining_{false};
  std::atomic<bool> stopping_{false};
  std::atomic<bool> catalog_filled_{false};  // with what was found at the start
  MemoryBudget mass_budget_{limits::kMaxMassBytes};
  MemoryBudget promotions_;
  Metrics metrics_;
  LayoutRegistry layouts_;
  SessionRegistry sessions_;
  std::unique_ptr<Journal> journal_;  // after what it says, before the store, whose threads call it
  std::unique_ptr<TieredStore> store_;
  std::unique_ptr<BlockCatalog> catalog_;
  BufferPool staging_;
  std::unique_ptr<UploadAdmission> admission_;
  std::unique_ptr<GpuExecutor> gpu_;
  std::string gpu_absence_;
  GpuRegionLeases gpu_regions_;
  // Last: their threads use all of the above.
  std::unique_ptr<ProfileLearning> learning_;
  std::unique_ptr<CodecPool> codec_pool_;
  std::unique_ptr<ReadPool> read_pool_;
  std::unique_ptr<CodecPool> background_;
  std::unique_ptr<StreamMonitor> monitor_;
};

// `name` or "default"; RESOURCE_EXHAUSTED when it is longer than kMaxNameBytes.
absl::StatusOr<std::string> NamespaceOrDefault(std::string_view name);
// RESOURCE_EXHAUSTED when `name` is longer than kMaxNameBytes.
absl::Status CheckName(std::string_view what, std::string_view name);

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_ENGINE_H_
