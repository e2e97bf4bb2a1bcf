#include "server/engine.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/codec/codec.h"
#include "core/layout/chain_hash.h"
#include "server/error_detail.h"
#include "server/state_records.h"
#include "spdlog/spdlog.h"

namespace latticekv {
namespace {

// Of the memory, for chunks that wait to be learnt from.
constexpr size_t kLearningShare = 16;
// Of unused payload buffers, beside the cap.
constexpr size_t kStagingShare = 32;
constexpr size_t kMaxStagingBytes = size_t{64} << 20;
// Of the memory, for blocks that requests under way bring in from disk whole: others stay.
constexpr size_t kPromotionsShare = 2;

}  // namespace

CacheEngine::CacheEngine(const ServerConfig& config)
    : config_(config),
      start_ms_(config.clock->MonotonicMs()),
      promotions_(config.memory_bytes / kPromotionsShare),
      sessions_(config.clock),
      staging_(std::min(config.memory_bytes / kStagingShare, kMaxStagingBytes)) {}

CacheEngine::~CacheEngine() {
  stopping_.store(true);
  monitor_.reset();
  background_.reset();
  read_pool_.reset();
  codec_pool_.reset();
  learning_.reset();
  if (!journal_) return;  // no disk, or its directory could not be taken
  // Last words of blocks and of the journal; what cannot be written now was never acknowledged.
  if (const absl::Status flushed = Flush(); !flushed.ok()) {
    spdlog::warn("not everything could be written to disk: {}", std::string(flushed.message()));
  }
}

absl::StatusOr<std::unique_ptr<CacheEngine>> CacheEngine::Create(const ServerConfig& config) {
  LKV_RETURN_IF_ERROR(ValidateConfig(config));
  auto engine = std::unique_ptr<CacheEngine>(new CacheEngine(config));
  StoreOptions options;
  options.memory_bytes = config.memory_bytes;
  options.clock = config.clock;
  options.disk_dir = config.disk_dir;
  options.disk_bytes = config.disk_bytes;
  options.file_system = config.file_system;
  LKV_ASSIGN_OR_RETURN(engine->store_, TieredStore::Open(options));
  if (!config.disk_dir.empty() && engine->store_->Health().state == StoreHealth::State::kNoDisk) {
    return absl::UnimplementedError(
        "this build's store has no disk tier; leave --disk_dir and --disk_bytes out");
  }
  engine->start_phases_.Done("blocks");
  engine->catalog_ = std::make_unique<BlockCatalog>(engine->store_.get(), config.clock);
  engine->store_->SetRemovalListener(
      [catalog = engine->catalog_.get()](const BlockKey& key, RemovalReason reason) {
        catalog->OnRemoved(key, reason);
      });
  LKV_RETURN_IF_ERROR(engine->OpenJournal());
  engine->start_phases_.Done("journal");
  engine->admission_ = std::make_unique<UploadAdmission>(
      engine->store_.get(), config.memory_bytes, config.credit_wait_timeout_ms, config.clock);
  // A wrong LATTICEKV_CPU_LEVEL is told now and not with every block.
  LKV_RETURN_IF_ERROR(ResolveCodecBackend(CodecBackend::kAuto).status());
  LKV_RETURN_IF_ERROR(engine->StartGpu());
  engine->start_phases_.Done("codec and GPU");
  const int least = engine->gpu_ ? limits::kGpuMinCodecThreads : 1;
  const int threads = config.codec_threads > 0
                          ? config.codec_threads
                          : std::max(least, static_cast<int>(std::thread::hardware_concurrency()));
  LearningOptions learning;
  learning.enabled = config.learn_profiles;
  learning.tokens = config.learn_tokens;
  learning.max_relearn_tokens = config.max_relearn_tokens;
  learning.max_waiting_bytes = config.memory_bytes / kLearningShare;
  learning.reserve = [store = engine->store_.get()](size_t bytes) { return store->Reserve(bytes); };
  engine->learning_ = std::make_unique<ProfileLearning>(&engine->layouts_, learning);
  engine->codec_pool_ = std::make_unique<CodecPool>(threads, limits::kMaxCodecQueueJobs);
  engine->read_pool_ = std::make_unique<ReadPool>(config.disk_dir.empty() ? 0 : config.read_threads,
                                                  limits::kMaxReadQueueJobs);
  engine->background_ = std::make_unique<CodecPool>(1, limits::kMaxBackgroundJobs);
  engine->monitor_ = std::make_unique<StreamMonitor>(config.tick_ms, [e = engine.get()] {
    e->admission_->Poke();
    e->sessions_.Sweep();
    e->WatchDiskHealth();
    e->DropUnusedProfiles();
  });
  engine->catalog_filled_.store(config.disk_dir.empty());
  if (!config.disk_dir.empty()) {
    static_cast<void>(engine->background_->Submit(CodecPool::Kind::kDecode,
                                                  [e = engine.get()] { e->FillCatalog(); }));
  }
  return engine;
}

absl::Status CacheEngine::StartGpu() {
  const GpuConfig& gpu = config_.gpu;
  if (gpu.use == GpuConfig::Use::kOff) {
    gpu_absence_ = "not asked for";
    return absl::OkStatus();
  }
  auto device = gpu.open(gpu.options);
  absl::Status status = device.status();
  if (device.ok()) {
    auto executor =
        GpuExecutor::Start(*std::move(device), gpu.options, [this](const absl::Status& why) {
          spdlog::error("the GPU is not used any more, CPUs encode and decode: {}",
                        std::string(why.message()));
          MutexLock lock(health_mutex_);
          if (gpu_off_listener_) gpu_off_listener_();
        });
    status = executor.status();
    if (executor.ok()) gpu_ = *std::move(executor);
  }
  if (gpu_) {
    spdlog::info("GPU: {}", gpu_->stats().device);
    return absl::OkStatus();
  }
  gpu_absence_ = std::string(status.message());
  if (gpu.use == GpuConfig::Use::kDevice && absl::IsFailedPrecondition(status)) return status;
  if (absl::IsFailedPrecondition(status)) {
    spdlog::info("no GPU, CPUs encode and decode: {}", gpu_absence_);
  } else {
    spdlog::warn("the GPU is not used, CPUs encode and decode: {}", gpu_absence_);
  }
  return absl::OkStatus();
}

absl::Status CacheEngine::OpenJournal() {
  if (config_.disk_dir.empty()) return absl::OkStatus();
  size_t refused = 0;
  LKV_ASSIGN_OR_RETURN(journal_, Journal::Open(
                                     config_.file_system, config_.disk_dir,
                                     [&](ByteSpan record) {
                                       const absl::Status applied =
                                           ApplyRecord(record, layouts_, sessions_);
                                       if (applied.ok()) return;
                                       ++refused;
                                       spdlog::warn("journal: {}", std::string(applied.message()));
                                     },
                                     [this](const Journal::Emit& emit) {
                                       layouts_.EmitAll(emit);
                                       sessions_.EmitAll(emit);
                                     }));
  layouts_.RecordIn(journal_.get());
  sessions_.RecordIn(journal_.get());
  const size_t gone =
      sessions_.DropEmpty([this](const BlockKey& key) { return store_->Contains(key); });
  const StoreStats store = store_->Stats();
  const JournalStats journal = journal_->Stats();
  spdlog::info(
      "disk tier in {} ({}): {} blocks in {} segments, {} of them without an index and read whole, "
      "{} bytes of {}; {} layouts, {} sessions, {} sessions ended since none of their blocks is "
      "there",
      config_.disk_dir, config_.file_system->name(), store.recovered_blocks, store.segments,
      store.scanned_segments, store.disk_used_bytes, store.disk_capacity_bytes, layouts_.size(),
      sessions_.size(), gone);
  damaged_told_ = store.corrupt_dropped;
  if (store.corrupt_dropped + journal.damaged_bytes + refused > 0) {
    spdlog::warn(
        "lost at recovery: {} damaged records of blocks; {} damaged bytes and {} records of the "
        "journal",
        store.corrupt_dropped, journal.damaged_bytes, refused);
  }
  return absl::OkStatus();
}

void CacheEngine::FillCatalog() {
  constexpr uint32_t kPage = 256;
  uint32_t cursor = 0;
  do {
    cursor = store_->VisitDisk(cursor, kPage, [&](const StoredBlockPtr& block) {
      const auto metadata = ParseMetadata(block->metadata);
      if (metadata.ok()) catalog_->OnRecovered(block, *metadata);
    });
  } while (cursor != 0 && !stopping_.load());
  if (!stopping_.load()) catalog_filled_.store(true);
}

void CacheEngine::DropUnusedProfiles() {
  // What could not be read or described when the catalog was filled may refer to any of them.
  if (!catalog_filled_.load() || catalog_->size() < store_->Stats().blocks) return;
  layouts_.DropUnusedLearnt([this](const Digest& fingerprint, const Digest& profile_hash) {
    return catalog_->ProfileUses(fingerprint, profile_hash);
  });
}

StoreHealth CacheEngine::DiskHealth() {
  StoreHealth health = store_->Health();
  if (health.state != StoreHealth::State::kOk || !journal_) return health;
  const absl::Status journal = journal_->Stats().health;
  if (journal.ok()) return health;
  return {StoreHealth::State::kMemoryOnly,
          absl::StrCat("the journal of layouts and sessions takes no writes: ",
                       std::string(journal.message()))};
}

void CacheEngine::WatchDiskHealth() {
  if (!journal_) return;
  const StoreHealth health = DiskHealth();
  const bool ok = health.state == StoreHealth::State::kOk;
  const StoreStats stats = store_->Stats();
  MutexLock lock(health_mutex_);
  const uint64_t damaged =
      stats.corrupt_dropped - std::exchange(damaged_told_, stats.corrupt_dropped);
  const uint64_t lost = stats.lost_blocks - std::exchange(lost_told_, stats.lost_blocks);
  if (damaged > 0) {
    spdlog::warn(
        "{} damaged records or blocks were found and dropped; `latticekv verify` checks all",
        damaged);
  }
  if (lost > 0) spdlog::warn("{} blocks were lost with their files in {}", lost, config_.disk_dir);
  if (stats.settled && ok && !std::exchange(settled_told_, true)) {
    spdlog::info("the disk takes blocks, after {:.2f} s for what the start left to be written",
                 static_cast<double>(stats.settle_ms) / 1000);
  }
  if (std::exchange(disk_ok_, ok) == ok) return;
  if (ok) {
    spdlog::info("the disk takes writes again");
  } else {
    spdlog::error("blocks are kept in memory only: {}", health.reason);
  }
  if (disk_listener_) disk_listener_(ok);
}

void CacheEngine::SetDiskListener(std::function<void(bool)> listener) {
  MutexLock lock(health_mutex_);
  disk_listener_ = std::move(listener);
  if (disk_listener_) disk_listener_(disk_ok_);
}

void CacheEngine::SetGpuOffListener(std::function<void()> listener) {
  MutexLock lock(health_mutex_);
  gpu_off_listener_ = std::move(listener);
  if (gpu_off_listener_ && gpu_ && !gpu_->stats().on) gpu_off_listener_();
}

void CacheEngine::WhenStateDurable(Journal::Done done) {
  if (journal_) {
    journal_->WhenDurable(std::move(done));
  } else {
    done(absl::OkStatus());
  }
}

absl::Status CacheEngine::Flush() {
  LKV_RETURN_IF_ERROR(store_->Flush());
  return journal_->Flush();
}

BlockKey CacheEngine::KeyOf(std::string_view name_space, const Digest& content_hash) const {
  return TenantKey(kDefaultTenant, name_space, content_hash);
}

std::optional<FoundBlock> CacheEngine::Find(const BlockKey& key) {
  return Describe(store_->Peek(key));
}

std::optional<FoundBlock> CacheEngine::Describe(StoredBlockPtr block) {
  if (!block) return std::nullopt;
  auto metadata = ParseMetadata(block->metadata);
  if (!metadata.ok()) {
    DropCorrupt(block, std::string(metadata.status().message()));
    return std::nullopt;
  }
  return FoundBlock{std::move(block), *std::move(metadata)};
}

void CacheEngine::DropCorrupt(const StoredBlockPtr& block, std::string_view why) {
  ++metrics_.corrupt_blocks;
  spdlog::warn("dropped corrupt block {}: {}", ToHex(block->key), why);
  store_->DropCorrupt(block);
}

bool CacheEngine::Remove(const BlockKey& key, Removal why) {
  if (!store_->Contains(key)) return false;
  catalog_->NoteRemoval(key, why);
  return store_->Delete(key);
}

v1::ErrorDetail CacheEngine::ExplainAbsence(const BlockKey& key) const {
  v1::ErrorDetail detail;
  if (const auto variant = catalog_->EvictedVariant(key)) {
    detail.set_reason(v1::REASON_EVICTED_TOKENS);
    detail.set_message(
        "stored with evicted tokens only; look it up with accept_evicted, or put it whole");
    return detail;
  }
  const RemovalText text = TextOf(catalog_->ExplainRemoval(key).value_or(Removal::kNone));
  detail.set_reason(text.reason);
  detail.set_message(std::string(text.message));
  return detail;
}

absl::Status CheckName(std::string_view what, std::string_view name) {
  if (name.size() <= limits::kMaxNameBytes) return absl::OkStatus();
  return LimitError("kMaxNameBytes", absl::StrCat("the ", std::string(what), " has ", name.size(),
                                                  " bytes; use at most ", limits::kMaxNameBytes));
}

absl::StatusOr<std::string> NamespaceOrDefault(std::string_view name) {
  LKV_RETURN_IF_ERROR(CheckName("namespace", name));
  return std::string(name.empty() ? kDefaultNamespace : name);
}

}  // namespace latticekv
