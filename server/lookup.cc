#include "server/lookup.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/layout/chain_hash.h"
#include "server/error_detail.h"

namespace latticekv {
namespace {

// Siblings looked at for a partial match, beyond the longest ones failing the quality bounds.
constexpr size_t kMaxPartialCandidates = 8;

// One lookup under way.
class Lookup {
 public:
  Lookup(CacheEngine& engine, const v1::LookupRequest& request, std::string name_space,
         LayoutInUse layout)
      : engine_(engine),
        request_(request),
        name_space_(std::move(name_space)),
        layout_(std::move(layout)) {}

  absl::StatusOr<v1::LookupResponse> Run() {
    response_.set_chunk_tokens(layout_.chunk_tokens);
    if (request_.chain_hashes_size() > 0) {
      LKV_RETURN_IF_ERROR(ByHashes());
    } else {
      ByTokens();
    }
    if (last_found_) engine_.store().Touch(*last_found_);
    if (response_.miss_reason() != v1::REASON_UNSPECIFIED) ++engine_.metrics().misses;
    return std::move(response_);
  }

 private:
  absl::Status ByHashes() {
    for (const std::string& bytes : request_.chain_hashes()) {
      LKV_ASSIGN_OR_RETURN(const Digest hash, DigestFromBytes(bytes, "chain_hashes"));
      const BlockKey key = engine_.KeyOf(name_space_, hash);
      if (!Take(key, std::nullopt)) {
        if (response_.miss_reason() == v1::REASON_UNSPECIFIED) Miss(engine_.ExplainAbsence(key));
        break;
      }
    }
    return absl::OkStatus();
  }

  // Whole blocks where there are any; for a reader that takes evicted tokens also the other way
  // round, since a chain of blocks with evicted tokens goes on under names of its own.
  void ByTokens() {
    Walk(/*evicted_first=*/false);
    if (!request_.accept_evicted() || response_.miss_reason() == v1::REASON_UNSPECIFIED) return;
    v1::LookupResponse whole_first = std::exchange(response_, {});
    const std::optional<BlockKey> last_found = std::exchange(last_found_, std::nullopt);
    response_.set_chunk_tokens(layout_.chunk_tokens);
    Walk(/*evicted_first=*/true);
    if (response_.usable_tokens() > whole_first.usable_tokens()) return;
    response_ = std::move(whole_first);
    last_found_ = last_found;
  }

  void Walk(bool evicted_first) {
    const std::vector<uint32_t> ids(request_.token_ids().begin(), request_.token_ids().end());
    const size_t chunk = layout_.chunk_tokens;
    std::optional<Digest> parent, free_parent;
    for (size_t at = 0; at < ids.size(); at += chunk) {
      const std::span tokens = std::span(ids).subspan(at, std::min(chunk, ids.size() - at));
      const Digest hash = ChunkHash(layout_.fingerprint, parent, tokens, request_.salt());
      const BlockKey key = engine_.KeyOf(name_space_, hash);
      free_parent = LayoutFreeHash(name_space_, free_parent, tokens, request_.salt());
      std::optional<Digest> found;
      if (evicted_first) found = TakeEvicted(parent, tokens);
      if (!found) found = Take(key, std::nullopt);
      if (!found && !evicted_first) found = TakeEvicted(parent, tokens);
      if (!found) {
        ByChildren(key, parent, *free_parent, tokens);
        return;
      }
      parent = found;
      response_.clear_miss_reason();
      response_.clear_miss_message();
    }
  }

  std::vector<BlockCatalog::Match> Children(const std::optional<Digest>& parent, bool evicted,
                                            std::span<const uint32_t> tokens) {
    if (evicted && !request_.accept_evicted()) return {};
    std::optional<BlockKey> parent_key;
    if (parent) parent_key = engine_.KeyOf(name_space_, *parent);
    return engine_.catalog().MatchChildren(name_space_, layout_.fingerprint, parent_key,
                                           request_.salt(), evicted, tokens, kMaxPartialCandidates);
  }

  // A block of just these tokens, some of them evicted.
  std::optional<Digest> TakeEvicted(const std::optional<Digest>& parent,
                                    std::span<const uint32_t> tokens) {
    for (const auto& match : Children(parent, true, tokens)) {
      const auto found = engine_.Find(match.key);
      if (!found || found->metadata.tokens != match.common_tokens) continue;
      if (match.common_tokens != tokens.size()) continue;
      if (const auto taken = Take(match.key, std::nullopt)) return taken;
    }
    return std::nullopt;
  }

  // The chunk itself is not there (or not good enough): others may begin with the same ids.
  void ByChildren(const BlockKey& key, const std::optional<Digest>& parent,
                  const Digest& layout_free_hash, std::span<const uint32_t> tokens) {
    auto matches = Children(parent, false, tokens);
    const auto evicted = Children(parent, true, tokens);
    matches.insert(matches.end(), evicted.begin(), evicted.end());
    std::stable_sort(matches.begin(), matches.end(), [](const auto& a, const auto& b) {
      return a.common_tokens > b.common_tokens;
    });
    uint32_t usable = 0;
    for (const auto& match : matches) {
      if (match.key == key || !Take(match.key, match.common_tokens)) continue;
      usable = match.common_tokens;
      break;
    }
    if (usable == tokens.size()) {
      response_.clear_miss_reason();
      response_.clear_miss_message();
      return;
    }
    if (response_.miss_reason() != v1::REASON_UNSPECIFIED) return;
    v1::ErrorDetail why = engine_.ExplainAbsence(key);
    if (usable == 0 && why.reason() != v1::REASON_EVICTED_TOKENS &&
        engine_.catalog().StoredUnderOtherLayout(layout_free_hash, layout_.fingerprint)) {
      why.set_reason(v1::REASON_OTHER_LAYOUT);
      why.set_message("these tokens are stored under another layout; put them under this one");
    }
    Miss(why);
  }

  // Adds the block to the answer if it is there and accepted; its content hash then. `usable` none:
  // all of it.
  std::optional<Digest> Take(const BlockKey& key, std::optional<uint32_t> usable) {
    const auto found = engine_.Find(key);
    if (!found || found->metadata.fingerprint != layout_.fingerprint) {
      if (found) {
        v1::ErrorDetail why;
        why.set_reason(v1::REASON_OTHER_LAYOUT);
        why.set_message("stored under another layout than the one asked for");
        Miss(why);
      }
      return std::nullopt;
    }
    const absl::Status accepted =
        CheckAccepted(found->metadata, request_.bounds(), request_.accept_evicted());
    if (!accepted.ok()) {
      Miss(DetailOf(accepted));
      return std::nullopt;
    }
    v1::LookupBlock* block = response_.add_blocks();
    FillBlockInfo(found->metadata, *found->block, engine_.store().IsPinned(key),
                  block->mutable_block());
    block->set_usable_tokens(usable.value_or(found->metadata.tokens));
    response_.set_usable_tokens(response_.usable_tokens() + block->usable_tokens());
    last_found_ = key;
    return found->metadata.content_hash;
  }

  void Miss(const v1::ErrorDetail& why) {
    response_.set_miss_reason(why.reason());
    response_.set_miss_message(why.message());
  }

  CacheEngine& engine_;
  const v1::LookupRequest& request_;
  const std::string name_space_;
  const LayoutInUse layout_;
  v1::LookupResponse response_;
  std::optional<BlockKey> last_found_;
};

}  // namespace

absl::StatusOr<v1::LookupResponse> LookupPrefix(CacheEngine& engine,
                                                const v1::LookupRequest& request) {
  LKV_ASSIGN_OR_RETURN(std::string name_space, NamespaceOrDefault(request.namespace_()));
  LKV_ASSIGN_OR_RETURN(const Digest fingerprint,
                       DigestFromBytes(request.fingerprint(), "fingerprint"));
  LKV_RETURN_IF_ERROR(CheckName("salt", request.salt()));
  if (request.token_ids_size() > 0 && request.chain_hashes_size() > 0) {
    return absl::InvalidArgumentError("give token_ids or chain_hashes, not both");
  }
  if (request.token_ids_size() > static_cast<int>(limits::kMaxLookupTokens)) {
    return LimitError(
        "kMaxLookupTokens",
        absl::StrCat("the request has ", request.token_ids_size(), " token ids; send at most ",
                     limits::kMaxLookupTokens, " or look up by chain hashes"));
  }
  if (request.chain_hashes_size() > static_cast<int>(limits::kMaxBlocksPerRequest)) {
    return LimitError("kMaxBlocksPerRequest",
                      absl::StrCat("the request has ", request.chain_hashes_size(),
                                   " hashes; send at most ", limits::kMaxBlocksPerRequest));
  }
  auto layout = engine.layouts().Find(name_space, fingerprint);
  if (!layout.ok()) {
    v1::LookupResponse response;
    const v1::ErrorDetail why = DetailOf(layout.status());
    response.set_miss_reason(why.reason());
    response.set_miss_message(why.message());
    ++engine.metrics().misses;
    return response;
  }
  return Lookup(engine, request, std::move(name_space), *std::move(layout)).Run();
}

}  // namespace latticekv
