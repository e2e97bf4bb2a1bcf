#include "server/state_records.h"

#include <algorithm>
#include <utility>

#include "core/base/limits.h"
#include "server/layout_registry.h"

namespace latticekv {
namespace {

enum class Kind : uint8_t {
  kLayout = 1,
  kProfile = 2,
  kNamespace = 3,
  kLayoutUse = 4,
  kSession = 5,
  kSessionBlock = 6,
  kSessionBlockGone = 7,
  kSessionEnd = 8,
  kLearntProfile = 9,
  kProfileGone = 10,
};

ByteWriter Begin(Kind kind) {
  ByteWriter out;
  out.Put(kind);
  return out;
}

void PutId(const SessionId& id, ByteWriter* out) {
  out->PutString(id.name_space);
  out->PutString(id.name);
}

SessionId GetId(ByteReader& in) {
  SessionId id;
  id.name_space = in.GetString(limits::kMaxNameBytes);
  id.name = in.GetString(limits::kMaxNameBytes);
  return id;
}

Digest GetDigest(ByteReader& in) {
  Digest out{};
  const ByteSpan bytes = in.GetBytes(out.size());
  if (bytes.size() == out.size()) std::copy(bytes.begin(), bytes.end(), out.begin());
  return out;
}

SessionBlock GetBlock(ByteReader& in) {
  SessionBlock block;
  block.key = GetDigest(in);
  block.content_hash = GetDigest(in);
  const bool has_parent = in.Get<uint8_t>() != 0;
  const Digest parent = GetDigest(in);
  if (has_parent) block.parent_hash = parent;
  block.start_position = in.Get<uint64_t>();
  block.tokens = in.Get<uint32_t>();
  block.raw_bytes = in.Get<uint64_t>();
  return block;
}

absl::Status Malformed() { return absl::DataLossError("a record of the journal is malformed"); }

}  // namespace

ByteVector LayoutRecord(const Layout& layout) {
  ByteWriter out = Begin(Kind::kLayout);
  out.PutString(AsText(SerializeLayout(layout)));
  return out.Take();
}

ByteVector ProfileRecord(const Digest& fingerprint, const ModelProfile& profile) {
  ByteWriter out = Begin(Kind::kProfile);
  out.PutBytes(fingerprint);
  out.PutString(AsText(SerializeProfile(profile)));
  return out.Take();
}

ByteVector LearntProfileRecord(const Digest& fingerprint, uint32_t version,
                               const ModelProfile& profile) {
  ByteWriter out = Begin(Kind::kLearntProfile);
  out.PutBytes(fingerprint);
  out.Put<uint32_t>(version);
  out.PutString(AsText(SerializeProfile(profile)));
  return out.Take();
}

ByteVector ProfileGoneRecord(const Digest& fingerprint, const Digest& profile_hash) {
  ByteWriter out = Begin(Kind::kProfileGone);
  out.PutBytes(fingerprint);
  out.PutBytes(profile_hash);
  return out.Take();
}

ByteVector NamespaceRecord(std::string_view name_space, uint32_t chunk_tokens) {
  ByteWriter out = Begin(Kind::kNamespace);
  out.PutString(name_space);
  out.Put<uint32_t>(chunk_tokens);
  return out.Take();
}

ByteVector LayoutUseRecord(std::string_view name_space, const Digest& fingerprint) {
  ByteWriter out = Begin(Kind::kLayoutUse);
  out.PutString(name_space);
  out.PutBytes(fingerprint);
  return out.Take();
}

ByteVector SessionRecord(const Session& session) {
  ByteWriter out = Begin(Kind::kSession);
  PutId(session.id, &out);
  out.PutBytes(session.fingerprint);
  out.Put<int64_t>(session.created_ms);
  out.Put<int64_t>(session.last_used_ms);
  out.Put<int64_t>(session.expires_ms);
  return out.Take();
}

ByteVector SessionBlockRecord(const SessionId& id, const SessionBlock& block) {
  ByteWriter out = Begin(Kind::kSessionBlock);
  PutId(id, &out);
  out.PutBytes(block.key);
  out.PutBytes(block.content_hash);
  out.Put<uint8_t>(block.parent_hash ? 1 : 0);
  out.PutBytes(block.parent_hash.value_or(Digest{}));
  out.Put<uint64_t>(block.start_position);
  out.Put<uint32_t>(block.tokens);
  out.Put<uint64_t>(block.raw_bytes);
  return out.Take();
}

ByteVector SessionBlockGoneRecord(const SessionId& id, uint64_t start_position) {
  ByteWriter out = Begin(Kind::kSessionBlockGone);
  PutId(id, &out);
  out.Put<uint64_t>(start_position);
  return out.Take();
}

ByteVector SessionEndRecord(const SessionId& id) {
  ByteWriter out = Begin(Kind::kSessionEnd);
  PutId(id, &out);
  return out.Take();
}

absl::Status ApplyRecord(ByteSpan record, LayoutRegistry& layouts, SessionRegistry& sessions) {
  ByteReader in(record);
  const auto whole = [&in] { return in.ok() && in.remaining() == 0; };
  switch (in.Get<Kind>()) {
    case Kind::kLayout: {
      const std::string bytes = in.GetString(limits::kMaxJournalRecordBytes);
      return whole() ? layouts.RestoreLayout(AsBytes(bytes)) : Malformed();
    }
    case Kind::kProfile: {
      const Digest fingerprint = GetDigest(in);
      const std::string bytes = in.GetString(limits::kMaxProfileBytes);
      return whole() ? layouts.RestoreProfile(fingerprint, 0, AsBytes(bytes)) : Malformed();
    }
    case Kind::kLearntProfile: {
      const Digest fingerprint = GetDigest(in);
      const auto version = in.Get<uint32_t>();
      const std::string bytes = in.GetString(limits::kMaxProfileBytes);
      return whole() && version > 0 ? layouts.RestoreProfile(fingerprint, version, AsBytes(bytes))
                                    : Malformed();
    }
    case Kind::kProfileGone: {
      const Digest fingerprint = GetDigest(in);
      const Digest hash = GetDigest(in);
      if (!whole()) return Malformed();
      layouts.RestoreProfileGone(fingerprint, hash);
      return absl::OkStatus();
    }
    case Kind::kNamespace: {
      const std::string name = in.GetString(limits::kMaxNameBytes);
      const auto chunk_tokens = in.Get<uint32_t>();
      return whole() ? layouts.RestoreNamespace(name, chunk_tokens) : Malformed();
    }
    case Kind::kLayoutUse: {
      const std::string name = in.GetString(limits::kMaxNameBytes);
      const Digest fingerprint = GetDigest(in);
      return whole() ? layouts.RestoreUse(name, fingerprint) : Malformed();
    }
    case Kind::kSession: {
      Session session;
      session.id = GetId(in);
      session.fingerprint = GetDigest(in);
      session.created_ms = in.Get<int64_t>();
      session.last_used_ms = in.Get<int64_t>();
      session.expires_ms = in.Get<int64_t>();
      if (!whole()) return Malformed();
      sessions.Restore(std::move(session));
      return absl::OkStatus();
    }
    case Kind::kSessionBlock: {
      const SessionId id = GetId(in);
      const SessionBlock block = GetBlock(in);
      return whole() ? sessions.RestoreBlock(id, block) : Malformed();
    }
    case Kind::kSessionBlockGone: {
      const SessionId id = GetId(in);
      const auto start_position = in.Get<uint64_t>();
      if (!whole()) return Malformed();
      sessions.DropBlock(id, start_position);
      return absl::OkStatus();
    }
    case Kind::kSessionEnd: {
      const SessionId id = GetId(in);
      if (!whole()) return Malformed();
      sessions.Drop(id);
      return absl::OkStatus();
    }
  }
  return Malformed();
}

}  // namespace latticekv
