#include "server/block_commands.h"

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "server/error_detail.h"
#include "server/layout_proto.h"

namespace latticekv {
namespace {

struct Selection {
  std::optional<SessionId> session;
  std::vector<BlockKey> keys;
};

absl::Status NoSession(const SessionId& id) {
  return ErrorWith(absl::StatusCode::kNotFound, v1::REASON_NOT_STORED,
                   absl::StrCat("there is no session '", id.name, "' in namespace '", id.name_space,
                                "'; ListSessions shows what there is"));
}

absl::StatusOr<Selection> Select(CacheEngine& engine, const v1::BlockSelector& selector) {
  Selection out;
  LKV_ASSIGN_OR_RETURN(const std::string name_space, NamespaceOrDefault(selector.namespace_()));
  if (selector.session().empty() == (selector.content_hashes_size() == 0)) {
    return absl::InvalidArgumentError("name blocks by content_hashes or by a session, one of them");
  }
  if (!selector.session().empty()) {
    out.session = SessionId{name_space, selector.session()};
    const auto session = engine.sessions().Get(*out.session);
    if (!session) return NoSession(*out.session);
    for (const SessionBlock& block : session->blocks) out.keys.push_back(block.key);
    return out;
  }
  if (selector.content_hashes_size() > static_cast<int>(limits::kMaxBlocksPerRequest)) {
    return LimitError("kMaxBlocksPerRequest",
                      absl::StrCat("the request names ", selector.content_hashes_size(),
                                   " blocks; name at most ", limits::kMaxBlocksPerRequest));
  }
  for (const std::string& bytes : selector.content_hashes()) {
    LKV_ASSIGN_OR_RETURN(const Digest hash, DigestFromBytes(bytes, "content_hashes"));
    out.keys.push_back(engine.KeyOf(name_space, hash));
  }
  return out;
}

absl::Status CheckTtl(int64_t ttl_ms) {
  if (ttl_ms >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError("ttl_ms is negative; use 0 for none");
}

void Count(bool found, v1::BlocksResponse* out) {
  if (found) {
    out->set_found(out->found() + 1);
  } else {
    out->set_missing(out->missing() + 1);
  }
}

}  // namespace

absl::StatusOr<v1::RegisterLayoutResponse> RegisterLayout(
    CacheEngine& engine, const v1::RegisterLayoutRequest& request) {
  LKV_ASSIGN_OR_RETURN(const std::string name_space, NamespaceOrDefault(request.namespace_()));
  if (request.layout().ByteSizeLong() > limits::kMaxLayoutBytes) {
    return LimitError("kMaxLayoutBytes",
                      absl::StrCat("the layout has more than ", limits::kMaxLayoutBytes,
                                   " bytes; fold equal layers with `repeat`"));
  }
  LKV_ASSIGN_OR_RETURN(const Layout layout, LayoutFromProto(request.layout()));
  LKV_ASSIGN_OR_RETURN(const LayoutInUse in_use,
                       engine.layouts().Register(name_space, layout, AsBytes(request.profile()),
                                                 request.chunk_tokens()));
  v1::RegisterLayoutResponse response;
  response.set_fingerprint(DigestToBytes(in_use.fingerprint));
  if (in_use.profile_hash) response.set_profile_hash(DigestToBytes(*in_use.profile_hash));
  response.set_chunk_tokens(in_use.chunk_tokens);
  return response;
}

absl::StatusOr<v1::GetProfileResponse> GetProfile(CacheEngine& engine,
                                                  const v1::GetProfileRequest& request) {
  LKV_ASSIGN_OR_RETURN(const Digest fingerprint,
                       DigestFromBytes(request.fingerprint(), "fingerprint"));
  if (!engine.layouts().FindLayout(fingerprint)) {
    return ErrorWith(absl::StatusCode::kFailedPrecondition, v1::REASON_UNKNOWN_LAYOUT,
                     absl::StrCat("layout ", ToHex(fingerprint),
                                  " is not registered; call RegisterLayout first"));
  }
  v1::GetProfileResponse response;
  std::shared_ptr<const ModelProfile> profile;
  if (request.profile_hash().empty()) {
    profile = engine.layouts().CurrentProfile(fingerprint);
    if (!profile) return response;
  } else {
    LKV_ASSIGN_OR_RETURN(const Digest hash,
                         DigestFromBytes(request.profile_hash(), "profile_hash"));
    profile = engine.layouts().FindProfile(fingerprint, hash);
    if (!profile) {
      return ErrorWith(absl::StatusCode::kFailedPrecondition, v1::REASON_PROFILE_MISSING,
                       absl::StrCat("profile ", ToHex(hash),
                                    " of this layout is not here; Stats "
                                    "lists those that are"));
    }
  }
  response.set_profile(std::string(AsText(SerializeProfile(*profile))));
  response.set_profile_hash(DigestToBytes(profile->decoding_hash));
  return response;
}

absl::StatusOr<v1::BlocksResponse> TouchBlocks(CacheEngine& engine,
                                               const v1::TouchRequest& request) {
  LKV_RETURN_IF_ERROR(CheckTtl(request.ttl_ms()));
  LKV_ASSIGN_OR_RETURN(const Selection selection, Select(engine, request.blocks()));
  if (selection.session) {
    engine.sessions().MarkUsed(*selection.session);
    if (request.ttl_ms() > 0) engine.sessions().SetTtl(*selection.session, request.ttl_ms());
  }
  v1::BlocksResponse response;
  for (const BlockKey& key : selection.keys) {
    const bool found = engine.store().Touch(key);
    Count(found, &response);
    if (!found || request.ttl_ms() == 0) continue;
    // Blocks that other sessions hold too keep the longer of the lives.
    if (selection.session && engine.sessions().Holders(key).size() > 1) {
      engine.catalog().ExtendTtl(key, request.ttl_ms());
    } else {
      engine.catalog().SetTtl(key, request.ttl_ms());
    }
  }
  return response;
}

absl::StatusOr<v1::BlocksResponse> PinBlocks(CacheEngine& engine, const v1::PinRequest& request) {
  LKV_RETURN_IF_ERROR(CheckTtl(request.ttl_ms()));
  LKV_ASSIGN_OR_RETURN(const Selection selection, Select(engine, request.blocks()));
  v1::BlocksResponse response;
  std::vector<BlockKey> pinned;
  for (const BlockKey& key : selection.keys) {
    const absl::Status status = engine.store().Pin(key, request.ttl_ms());
    if (!status.ok() && !absl::IsNotFound(status)) {
      for (const BlockKey& undo : pinned) static_cast<void>(engine.store().Unpin(undo));
      return WithReason(status, v1::REASON_MEMORY_FULL);
    }
    if (status.ok()) pinned.push_back(key);
    Count(status.ok(), &response);
  }
  return response;
}

absl::StatusOr<v1::BlocksResponse> UnpinBlocks(CacheEngine& engine,
                                               const v1::UnpinRequest& request) {
  LKV_ASSIGN_OR_RETURN(const Selection selection, Select(engine, request.blocks()));
  v1::BlocksResponse response;
  for (const BlockKey& key : selection.keys) Count(engine.store().Unpin(key).ok(), &response);
  return response;
}

absl::StatusOr<v1::BlocksResponse> DeleteBlocks(CacheEngine& engine,
                                                const v1::DeleteRequest& request) {
  LKV_ASSIGN_OR_RETURN(Selection selection, Select(engine, request.blocks()));
  if (selection.session) {
    const auto exclusive = engine.sessions().Remove(*selection.session);
    if (!exclusive) return NoSession(*selection.session);
    selection.keys.clear();
    for (const SessionBlock& block : *exclusive) selection.keys.push_back(block.key);
  }
  v1::BlocksResponse response;
  for (const BlockKey& key : selection.keys) {
    Count(engine.Remove(key, Removal::kDeleted), &response);
  }
  return response;
}

}  // namespace latticekv
