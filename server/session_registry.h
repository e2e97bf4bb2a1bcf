// Sessions: named chains of blocks, for people and for lifetime, pins and deletion. In memory, with
// every change in the journal where there is one.
#ifndef LATTICEKV_SERVER_SESSION_REGISTRY_H_
#define LATTICEKV_SERVER_SESSION_REGISTRY_H_

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "core/base/clock.h"
#include "core/base/mutex.h"
#include "core/store/journal.h"
#include "core/store/tiered_store.h"

namespace latticekv {

struct SessionBlock {
  BlockKey key{};
  Digest content_hash{};
  std::optional<Digest> parent_hash;
  uint64_t start_position = 0;
  uint32_t tokens = 0;
  uint64_t raw_bytes = 0;
};

struct SessionId {
  std::string name_space;
  std::string name;
  auto operator<=>(const SessionId&) const = default;
};

struct Session {
  SessionId id;
  Digest fingerprint{};
  std::vector<SessionBlock> blocks;  // by start position
  int64_t created_ms = 0;
  int64_t last_used_ms = 0;
  int64_t expires_ms = 0;  // 0: never
};

// Thread-safe.
class SessionRegistry {
 public:
  explicit SessionRegistry(const Clock* clock) : clock_(clock) {}

  // Whether blocks of `fingerprint` may be appended: FAILED_PRECONDITION when the session holds
  // blocks of another layout, RESOURCE_EXHAUSTED at kMaxSessions or kMaxBlocksPerRequest blocks.
  absl::Status CheckAppend(const SessionId& id, const Digest& fingerprint) const;
  // Adds a visible block; the first one makes the session. A block at the start position of another
  // takes its place, and later ones that continued the old one leave the session. `ttl_ms` 0 leaves
  // the session's lifetime as it is.
  absl::Status Append(const SessionId& id, const Digest& fingerprint, const SessionBlock& block,
                      int64_t ttl_ms);

  std::optional<Session> Get(const SessionId& id) const;
  // Up to `limit` sessions in order of their ids, after `after`; empty namespace: all.
  std::vector<Session> List(std::string_view name_space, const std::optional<SessionId>& after,
                            size_t limit) const;
  // The removed session's blocks that no other session holds; nothing when there is no such
  // session.
  std::optional<std::vector<SessionBlock>> Remove(const SessionId& id);
  void MarkUsed(const SessionId& id);
  // False when absent.
  bool SetTtl(const SessionId& id, int64_t ttl_ms);

  std::vector<SessionId> Holders(const BlockKey& key) const;
  // Forgets sessions whose time has come (their blocks expire by themselves). Returns how many.
  size_t Sweep();
  size_t size() const;

  // Changes from here on are written to `journal` (null: nowhere).
  void RecordIn(Journal* journal);
  // The whole state as records.
  void EmitAll(const Journal::Emit& emit) const;
  // What a record says, when the journal is read. The blocks of a session that is there stay.
  void Restore(Session session);
  // DATA_LOSS when there is no such session.
  absl::Status RestoreBlock(const SessionId& id, const SessionBlock& block);
  void DropBlock(const SessionId& id, uint64_t start_position);
  void Drop(const SessionId& id);  // an expired one, too
  // Ends the sessions of which `present` knows no block. Returns how many.
  size_t DropEmpty(const std::function<bool(const BlockKey&)>& present);

 private:
  using Sessions = std::map<SessionId, Session>;
  absl::Status CheckAppendLocked(const SessionId& id, const Digest& fingerprint) const
      LKV_REQUIRES(mutex_);
  void Unhold(const BlockKey& key, const Session* session) LKV_REQUIRES(mutex_);
  void SetExpiry(Session& session, int64_t expires_ms) LKV_REQUIRES(mutex_);
  void Erase(Sessions::iterator it) LKV_REQUIRES(mutex_);
  static std::vector<SessionBlock>::iterator At(Session& session, uint64_t start_position);
  void Record(const ByteVector& record) LKV_REQUIRES(mutex_) {
    if (journal_ != nullptr) journal_->Append(record);
  }
  bool Expired(const Session& s) const {
    return s.expires_ms != 0 && s.expires_ms <= clock_->WallMs();
  }

  const Clock* const clock_;
  mutable Mutex mutex_;
  Journal* journal_ LKV_GUARDED_BY(mutex_) = nullptr;
  Sessions sessions_ LKV_GUARDED_BY(mutex_);
  std::unordered_map<BlockKey, std::vector<const Session*>, DigestHash> holders_
      LKV_GUARDED_BY(mutex_);
  std::set<std::pair<int64_t, SessionId>> expiries_ LKV_GUARDED_BY(mutex_);
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_SESSION_REGISTRY_H_
