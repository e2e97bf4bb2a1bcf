// Layouts and model profiles that clients registered, by namespace.
#ifndef LATTICEKV_SERVER_LAYOUT_REGISTRY_H_
#define LATTICEKV_SERVER_LAYOUT_REGISTRY_H_

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "absl/status/statusor.h"
#include "core/base/mutex.h"
#include "core/layout/layout.h"
#include "core/layout/model_profile.h"
#include "core/store/journal.h"

namespace latticekv {

// A layout as a namespace uses it. Cheap to copy.
struct LayoutInUse {
  std::shared_ptr<const Layout> layout;
  Digest fingerprint{};
  std::shared_ptr<const ModelProfile> profile;  // the one to encode with; may be null
  std::optional<Digest> profile_hash;
  uint32_t chunk_tokens = 0;  // of the namespace
};

// Thread-safe.
class LayoutRegistry {
 public:
  // Idempotent. The namespace's first layout sets its chunk size (`chunk_tokens` 0: 256); a later
  // one with another size is FAILED_PRECONDITION. A non-empty `profile` (canonical bytes) becomes
  // the one to encode with; older ones stay for the frames that refer to them.
  absl::StatusOr<LayoutInUse> Register(std::string_view name_space, const Layout& layout,
                                       ByteSpan profile, uint32_t chunk_tokens);

  // FAILED_PRECONDITION with REASON_UNKNOWN_LAYOUT when it was not registered in `name_space`.
  absl::StatusOr<LayoutInUse> Find(std::string_view name_space, const Digest& fingerprint) const;

  // Null when unknown.
  std::shared_ptr<const Layout> FindLayout(const Digest& fingerprint) const;
  std::shared_ptr<const ModelProfile> FindProfile(const Digest& fingerprint,
                                                  const Digest& profile_hash) const;
  size_t size() const;

  // Changes from here on are written to `journal` (null: nowhere).
  void RecordIn(Journal* journal);
  // The whole state as records.
  void EmitAll(const Journal::Emit& emit) const;
  // What a record says, when the journal is read. DATA_LOSS when it does not fit the state.
  absl::Status RestoreLayout(ByteSpan canonical);
  absl::Status RestoreProfile(const Digest& fingerprint, ByteSpan canonical);
  absl::Status RestoreNamespace(std::string_view name_space, uint32_t chunk_tokens);
  absl::Status RestoreUse(std::string_view name_space, const Digest& fingerprint);

 private:
  struct Entry {
    std::shared_ptr<const Layout> layout;
    std::map<Digest, std::shared_ptr<const ModelProfile>> profiles;
    std::optional<Digest> current_profile;
  };
  struct Namespace {
    uint32_t chunk_tokens = 0;
    std::set<Digest> fingerprints;
  };
  LayoutInUse InUse(const Digest& fingerprint, const Entry& entry, uint32_t chunk_tokens) const;
  void Record(const ByteVector& record) LKV_REQUIRES(mutex_) {
    if (journal_ != nullptr) journal_->Append(record);
  }

  mutable Mutex mutex_;
  Journal* journal_ LKV_GUARDED_BY(mutex_) = nullptr;
  std::map<Digest, Entry> layouts_ LKV_GUARDED_BY(mutex_);
  std::map<std::string, Namespace, std::less<>> namespaces_ LKV_GUARDED_BY(mutex_);
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_LAYOUT_REGISTRY_H_
