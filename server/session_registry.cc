#include "server/session_registry.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "server/error_detail.h"
#include "server/state_records.h"

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
  Record(SessionEndRecord(it->first));
  sessions_.erase(it);
}

std::vector<SessionBlock>::iterator SessionRegistry::At(Session& session, uint64_t start_position) {
  return std::lower_bound(
      session.blocks.begin(), session.blocks.end(), start_position,
      [](const SessionBlock& b, uint64_t start) { return b.start_position < start; });
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
  const bool longer = ttl_ms > 0 && now_ms + ttl_ms > session.expires_ms;
  if (longer) SetExpiry(session, now_ms + ttl_ms);
  if (longer || session.blocks.empty()) Record(SessionRecord(session));

  auto& blocks = session.blocks;
  auto at = At(session, block.start_position);
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
      Record(SessionBlockGoneRecord(id, next->start_position));
      next = blocks.erase(next);
    }
  } else {
    blocks.insert(at, block);
  }
  holders_[block.key].push_back(&session);
  Record(SessionBlockRecord(id, block));
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
  Record(SessionRecord(it->second));
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

void SessionRegistry::RecordIn(Journal* journal) {
  MutexLock lock(mutex_);
  journal_ = journal;
}

void SessionRegistry::EmitAll(const Journal::Emit& emit) const {
  MutexLock lock(mutex_);
  for (const auto& [id, session] : sessions_) {
    emit(SessionRecord(session));
    for (const SessionBlock& block : session.blocks) emit(SessionBlockRecord(id, block));
  }
}

void SessionRegistry::Restore(Session session) {
  MutexLock lock(mutex_);
  auto it = sessions_.find(session.id);
  if (it == sessions_.end()) {
    it = sessions_.emplace(session.id, Session{session.id}).first;
  }
  it->second.fingerprint = session.fingerprint;
  it->second.created_ms = session.created_ms;
  it->second.last_used_ms = session.last_used_ms;
  SetExpiry(it->second, session.expires_ms);
}

absl::Status SessionRegistry::RestoreBlock(const SessionId& id, const SessionBlock& block) {
  MutexLock lock(mutex_);
  const auto it = sessions_.find(id);
  if (it == sessions_.end()) {
    return absl::DataLossError("a session's block is in the journal and the session is not");
  }
  auto& blocks = it->second.blocks;
  const auto at = At(it->second, block.start_position);
  if (at != blocks.end() && at->start_position == block.start_position) {
    Unhold(at->key, &it->second);
    *at = block;
  } else if (blocks.size() < limits::kMaxBlocksPerRequest) {
    blocks.insert(at, block);
  } else {
    return absl::DataLossError("a session in the journal has more blocks than there may be");
  }
  holders_[block.key].push_back(&it->second);
  return absl::OkStatus();
}

void SessionRegistry::DropBlock(const SessionId& id, uint64_t start_position) {
  MutexLock lock(mutex_);
  const auto it = sessions_.find(id);
  if (it == sessions_.end()) return;
  const auto at = At(it->second, start_position);
  if (at == it->second.blocks.end() || at->start_position != start_position) return;
  Unhold(at->key, &it->second);
  it->second.blocks.erase(at);
}

void SessionRegistry::Drop(const SessionId& id) {
  MutexLock lock(mutex_);
  const auto it = sessions_.find(id);
  if (it != sessions_.end()) Erase(it);
}

size_t SessionRegistry::DropEmpty(const std::function<bool(const BlockKey&)>& present) {
  MutexLock lock(mutex_);
  size_t dropped = 0;
  for (auto it = sessions_.begin(); it != sessions_.end();) {
    const auto current = it++;
    const auto& blocks = current->second.blocks;
    if (std::any_of(blocks.begin(), blocks.end(),
                    [&](const SessionBlock& block) { return present(block.key); })) {
      continue;
    }
    Erase(current);
    ++dropped;
  }
  return dropped;
}

}  // namespace latticekv
