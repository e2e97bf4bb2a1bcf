// Layouts by namespace, and their model profiles: those that clients registered and those that the
// daemon learnt.
#ifndef LATTICEKV_SERVER_LAYOUT_REGISTRY_H_
#define LATTICEKV_SERVER_LAYOUT_REGISTRY_H_

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

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

// A profile as an operator sees it.
struct KeptProfile {
  std::shared_ptr<const ModelProfile> profile;
  uint32_t version = 0;  // of a learnt one, from 1 on; 0: registered
};
struct KnownLayout {
  Digest fingerprint{};
  std::shared_ptr<const Layout> layout;
  std::map<Digest, KeptProfile> profiles;
  std::optional<Digest> current_profile;
};

// Thread-safe.
class LayoutRegistry {
 public:
  // Idempotent. The namespace's first layout sets its chunk size (`chunk_tokens` 0: 256); a later
  // one with another size is FAILED_PRECONDITION. A non-empty `profile` (canonical bytes) that is
  // not the last one registered becomes the one to encode with; older ones stay for the frames that
  // refer to them.
  absl::StatusOr<LayoutInUse> Register(std::string_view name_space, const Layout& layout,
                                       ByteSpan profile, uint32_t chunk_tokens);

  // FAILED_PRECONDITION with REASON_UNKNOWN_LAYOUT when it was not registered in `name_space`.
  absl::StatusOr<LayoutInUse> Find(std::string_view name_space, const Digest& fingerprint) const;

  // Null when unknown.
  std::shared_ptr<const Layout> FindLayout(const Digest& fingerprint) const;
  std::shared_ptr<const ModelProfile> FindProfile(const Digest& fingerprint,
                                                  const Digest& profile_hash) const;
  // The one to encode with; null: none.
  std::shared_ptr<const ModelProfile> CurrentProfile(const Digest& fingerprint) const;
  size_t size() const;
  std::vector<KnownLayout> List() const;

  // What a new version is learnt for: the last registered profile, whose steps and query energy it
  // takes over, and the version in use.
  struct Learnable {
    std::shared_ptr<const ModelProfile> registered;  // null: none
    std::shared_ptr<const ModelProfile> learnt;      // null: the first version is to be learnt
  };
  // Nothing when the layout is unknown, its registered profile has statistics of its own or there
  // is nothing to learn (all planes are opaque).
  std::optional<Learnable> FindLearnable(const Digest& fingerprint) const;
  // Makes a learnt profile the one to encode with and returns its version. ABORTED when another
  // profile than `registered` was registered meanwhile; RESOURCE_EXHAUSTED when kMaxLearntProfiles
  // older versions are kept.
  absl::StatusOr<uint32_t> AddLearnt(const Digest& fingerprint, const ModelProfile* registered,
                                     ModelProfile profile);
  // Drops learnt versions other than the one in use that nobody holds and for which `uses`, called
  // with the lock held, gives 0 stored blocks. Returns how many.
  size_t DropUnusedLearnt(
      const std::function<uint64_t(const Digest& fingerprint, const Digest& profile_hash)>& uses);

  // Changes from here on are written to `journal` (null: nowhere).
  void RecordIn(Journal* journal);
  // The whole state as records.
  void EmitAll(const Journal::Emit& emit) const;
  // What a record says, when the journal is read. DATA_LOSS when it does not fit the state.
  absl::Status RestoreLayout(ByteSpan canonical);
  // `version` 0: a registered one.
  absl::Status RestoreProfile(const Digest& fingerprint, uint32_t version, ByteSpan canonical);
  void RestoreProfileGone(const Digest& fingerprint, const Digest& profile_hash);
  absl::Status RestoreNamespace(std::string_view name_space, uint32_t chunk_tokens);
  absl::Status RestoreUse(std::string_view name_space, const Digest& fingerprint);

 private:
  struct Entry {
    std::shared_ptr<const Layout> layout;
    std::map<Digest, KeptProfile> profiles;
    std::optional<Digest> registered_profile;  // the last one
    std::optional<Digest> current_profile;
    uint32_t last_version = 0;
    size_t Learnt() const;  // versions kept
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
