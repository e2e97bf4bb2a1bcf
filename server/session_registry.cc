#include "server/session_registry.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "server/error_detail.h"

namespace latticekv {

absl::Status SessionRegistry::CheckAppend(const SessionId& id, const Digest& fingerprint) const {
  MutexLock lock(mutex_);
  return CheckAppendLocked(id, fingerprint);
}

absl::Status SessionRegistry::CheckAppendLocked(const SessionId& id,
                                                const Digest& fingerprint) const {
  const auto it = sessions_.find(id);
  if (it == sessions_.end() || Expired(it->second)) {
    if (sessions_.size() < limits::kMaxSessions) return absl::OkStatus();
    return LimitError("kMaxSessions", absl::StrCat("there are ", sessions_.size(),
                                                   " sessions already; delete some"));
  }
  if (it->second.fingerprint != fingerprint) {
    return ErrorWith(
        absl::StatusCode::kFailedPrecondition, v1::REASON_OTHER_LAYOUT,
        absl::StrCat("session '", id.name,
                     "' holds blocks of another layout; delete it or use another name"));
  }
  if (it->second.blocks.size() >= limits::kMaxBlocksPerRequest) {
    return LimitError("kMaxBlocksPerRequest",
                      absl::StrCat("session '", id.name, "' has ", it->second.blocks.size(),
                                   " blocks already; start another"));
  }
  return absl::OkStatus();
}

void SessionRegistry::Unhold(const BlockKey& key, const Session* session) {
  const auto it = holders_.find(key);
  if (it == holders_.end()) return;
  std::erase(it->second, session);
  if (it->second.empty()) holders_.erase(it);
}

void SessionRegistry::SetExpiry(Session& session, int64_t expires_ms) {
  if (session.expires_ms != 0) expiries_.erase({session.expires_ms, session.id});
  session.expires_ms = expires_ms;
  if (expires_ms != 0) expiries_.insert({expires_ms, session.id});
}

void SessionRegistry::Erase(Sessions::iterator it) {
  for (const SessionBlock& block : it->second.blocks) Unhold(block.key, &it->second);
  SetExpiry(it->second, 0);
  sessions_.erase(it);
}

absl::Status SessionRegistry::Append(const SessionId& id, const Digest& fingerprint,
                                     const SessionBlock& block, int64_t ttl_ms) {
  MutexLock lock(mutex_);
  LKV_RETURN_IF_ERROR(CheckAppendLocked(id, fingerprint));
  const int64_t now_ms = clock_->WallMs();
  auto it = sessions_.find(id);
  if (it != sessions_.end() && Expired(it->second)) {
    Erase(it);
    it = sessions_.end();
  }
  if (it == sessions_.end()) {
    it = sessions_.emplace(id, Session{id, fingerprint, {}, now_ms, now_ms, 0}).first;
  }
  Session& session = it->second;
  session.last_used_ms = now_ms;
  if (ttl_ms > 0) SetExpiry(session, std::max(session.expires_ms, now_ms + ttl_ms));

  auto& blocks = session.blocks;
  auto at = std::lower_bound(
      blocks.begin(), blocks.end(), block.start_position,
      [](const SessionBlock& b, uint64_t start) { return b.start_position < start; });
  if (at != blocks.end() && at->start_position == block.start_position) {
    if (at->key == block.key) return absl::OkStatus();
    // Another continuation from here: what followed the old block is no part of the chain.
    std::optional<Digest> dropped = at->content_hash;
    Unhold(at->key, &session);
    *at = block;
    auto next = std::next(at);
    while (next != blocks.end() && next->parent_hash == dropped) {
      dropped = next->content_hash;
      Unhold(next->key, &session);
      next = blocks.erase(next);
    }
  } else {
    blocks.insert(at, block);
  }
  holders_[block.key].push_back(&session);
  return absl::OkStatus();
}

std::optional<Session> SessionRegistry::Get(const SessionId& id) const {
  MutexLock lock(mutex_);
  const auto it = sessions_.find(id);
  if (it == sessions_.end() || Expired(it->second)) return std::nullopt;
  return it->second;
}

std::vector<Session> SessionRegistry::List(std::string_view name_space,
                                           const std::optional<SessionId>& after,
                                           size_t limit) const {
  std::vector<Session> out;
  MutexLock lock(mutex_);
  auto it = after                ? sessions_.upper_bound(*after)
            : name_space.empty() ? sessions_.begin()
                                 : sessions_.lower_bound({std::string(name_space), ""});
  for (; it != sessions_.end() && out.size() < limit; ++it) {
    if (!name_space.empty() && it->first.name_space != name_space) break;
    if (!Expired(it->second)) out.push_back(it->second);
  }
  return out;
}

std::optional<std::vector<SessionBlock>> SessionRegistry::Remove(const SessionId& id) {
  MutexLock lock(mutex_);
  const auto it = sessions_.find(id);
  if (it == sessions_.end() || Expired(it->second)) return std::nullopt;
  const std::vector<SessionBlock> blocks = it->second.blocks;
  Erase(it);
  std::vector<SessionBlock> exclusive;
  for (const SessionBlock& block : blocks) {
    if (!holders_.contains(block.key)) exclusive.push_back(block);
  }
  return exclusive;
}

void SessionRegistry::MarkUsed(const SessionId& id) {
  MutexLock lock(mutex_);
  const auto it = sessions_.find(id);
  if (it != sessions_.end()) it->second.last_used_ms = clock_->WallMs();
}

bool SessionRegistry::SetTtl(const SessionId& id, int64_t ttl_ms) {
  MutexLock lock(mutex_);
  const auto it = sessions_.find(id);
  if (it == sessions_.end() || Expired(it->second)) return false;
  SetExpiry(it->second, clock_->WallMs() + ttl_ms);
  return true;
}

std::vector<SessionId> SessionRegistry::Holders(const BlockKey& key) const {
  MutexLock lock(mutex_);
  std::vector<SessionId> out;
  const auto it = holders_.find(key);
  if (it == holders_.end()) return out;
  for (const Session* session : it->second) out.push_back(session->id);
  return out;
}

size_t SessionRegistry::Sweep() {
  MutexLock lock(mutex_);
  const int64_t now_ms = clock_->WallMs();
  size_t swept = 0;
  while (!expiries_.empty() && expiries_.begin()->first <= now_ms) {
    Erase(sessions_.find(expiries_.begin()->second));
    ++swept;
  }
  return swept;
}

size_t SessionRegistry::size() const {
  MutexLock lock(mutex_);
  return sessions_.size();
}

}  // namespace latticekv
