#include "server/engine.h"

#include <algorithm>
#include <thread>

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/codec/codec.h"
#include "core/layout/chain_hash.h"
#include "server/error_detail.h"
#include "spdlog/spdlog.h"

namespace latticekv {

CacheEngine::CacheEngine(const ServerConfig& config)
    : config_(config), start_ms_(config.clock->MonotonicMs()), sessions_(config.clock) {}

CacheEngine::~CacheEngine() {
  monitor_.reset();
  codec_pool_.reset();
}

absl::StatusOr<std::unique_ptr<CacheEngine>> CacheEngine::Create(const ServerConfig& config) {
  LKV_RETURN_IF_ERROR(ValidateConfig(config));
  auto engine = std::unique_ptr<CacheEngine>(new CacheEngine(config));
  StoreOptions options;
  options.memory_bytes = config.memory_bytes;
  options.clock = config.clock;
  LKV_ASSIGN_OR_RETURN(engine->store_, TieredStore::Open(options));
  engine->catalog_ = std::make_unique<BlockCatalog>(engine->store_.get(), config.clock);
  engine->store_->SetRemovalListener(
      [catalog = engine->catalog_.get()](const BlockKey& key, RemovalReason reason) {
        catalog->OnRemoved(key, reason);
      });
  engine->admission_ = std::make_unique<UploadAdmission>(
      engine->store_.get(), config.memory_bytes, config.credit_wait_timeout_ms, config.clock);
  // A wrong LATTICEKV_CPU_LEVEL is told now and not with every block.
  LKV_RETURN_IF_ERROR(ResolveCodecBackend(CodecBackend::kAuto).status());
  const int threads = config.codec_threads > 0
                          ? config.codec_threads
                          : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  engine->codec_pool_ = std::make_unique<CodecPool>(threads, limits::kMaxCodecQueueJobs);
  engine->monitor_ = std::make_unique<StreamMonitor>(config.tick_ms, [e = engine.get()] {
    e->admission_->Poke();
    e->sessions_.Sweep();
  });
  return engine;
}

BlockKey CacheEngine::KeyOf(std::string_view name_space, const Digest& content_hash) const {
  return TenantKey(kDefaultTenant, name_space, content_hash);
}

std::optional<FoundBlock> CacheEngine::Find(const BlockKey& key) {
  StoredBlockPtr block = store_->Peek(key);
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

bool CacheEngine::Remove(const BlockKey& key, v1::Reason reason, std::string_view message) {
  if (!store_->Contains(key)) return false;
  catalog_->NoteRemoval(key, reason, message);
  return store_->Delete(key);
}

v1::ErrorDetail CacheEngine::ExplainAbsence(const BlockKey& key) const {
  v1::ErrorDetail detail;
  const auto removal = catalog_->ExplainRemoval(key);
  detail.set_reason(removal ? removal->first : v1::REASON_NOT_STORED);
  detail.set_message(removal ? removal->second : "not stored; put it first");
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
