#include "server/layout_registry.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "server/error_detail.h"
#include "server/state_records.h"

namespace latticekv {
namespace {

bool HasStatistics(const ModelProfile& profile) {
  for (const auto& layer : profile.layers) {
    for (const PlaneProfile& plane : layer) {
      for (const HeadProfile& head : plane.heads) {
        if (head.has_statistics()) return true;
      }
    }
  }
  return false;
}

// False when every plane is opaque.
bool HasChannels(const Layout& layout) {
  for (const LayerSpec& layer : layout.layers) {
    for (const PlaneSpec& plane : layer.planes) {
      if (plane.role != PlaneRole::kOpaque) return true;
    }
  }
  return false;
}

}  // namespace

size_t LayoutRegistry::Entry::Learnt() const {
  return static_cast<size_t>(std::count_if(
      profiles.begin(), profiles.end(), [](const auto& kept) { return kept.second.version > 0; }));
}

LayoutInUse LayoutRegistry::InUse(const Digest& fingerprint, const Entry& entry,
                                  uint32_t chunk_tokens) const {
  LayoutInUse out;
  out.layout = entry.layout;
  out.fingerprint = fingerprint;
  out.profile_hash = entry.current_profile;
  if (entry.current_profile) out.profile = entry.profiles.at(*entry.current_profile).profile;
  out.chunk_tokens = chunk_tokens;
  return out;
}

absl::StatusOr<LayoutInUse> LayoutRegistry::Register(std::string_view name_space,
                                                     const Layout& layout, ByteSpan profile_bytes,
                                                     uint32_t chunk_tokens) {
  LKV_RETURN_IF_ERROR(ValidateLayout(layout));
  if (chunk_tokens != 0 &&
      (chunk_tokens < limits::kMinChunkTokens || chunk_tokens > limits::kMaxChunkTokens)) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk_tokens is ", chunk_tokens, "; use ", limits::kMinChunkTokens, " to ",
                     limits::kMaxChunkTokens, ", or 0 for the default"));
  }
  const Digest fingerprint = LayoutFingerprint(layout);
  std::shared_ptr<const ModelProfile> profile;
  std::optional<Digest> profile_hash;
  if (!profile_bytes.empty()) {
    if (profile_bytes.size() > limits::kMaxProfileBytes) {
      return LimitError("kMaxProfileBytes",
                        absl::StrCat("the profile has ", profile_bytes.size(), " bytes; at most ",
                                     limits::kMaxProfileBytes, " are taken"));
    }
    LKV_ASSIGN_OR_RETURN(ModelProfile parsed, ParseProfile(profile_bytes, layout));
    profile_hash = ProfileHash(parsed);
    profile = std::make_shared<const ModelProfile>(std::move(parsed));
  }

  MutexLock lock(mutex_);
  auto ns = namespaces_.find(name_space);
  if (ns != namespaces_.end() && chunk_tokens != 0 && ns->second.chunk_tokens != chunk_tokens) {
    return absl::FailedPreconditionError(absl::StrCat(
        "namespace '", std::string(name_space), "' has chunks of ", ns->second.chunk_tokens,
        " tokens; register with that size or 0, or use another namespace"));
  }
  if (ns == namespaces_.end() && namespaces_.size() >= limits::kMaxNamespaces) {
    return LimitError("kMaxNamespaces", absl::StrCat("there are ", namespaces_.size(),
                                                     " namespaces already; use one of them"));
  }
  auto entry = layouts_.find(fingerprint);
  if (entry == layouts_.end() && layouts_.size() >= limits::kMaxLayouts) {
    return LimitError("kMaxLayouts",
                      absl::StrCat("there are ", layouts_.size(),
                                   " layouts already; restart the daemon to clear them"));
  }
  if (entry != layouts_.end() && profile_hash && !entry->second.profiles.contains(*profile_hash) &&
      entry->second.profiles.size() - entry->second.Learnt() >= limits::kMaxProfilesPerLayout) {
    return LimitError("kMaxProfilesPerLayout",
                      absl::StrCat("this layout has ", limits::kMaxProfilesPerLayout,
                                   " profiles already; register it with one of them or none"));
  }
  if (entry == layouts_.end()) {
    entry = layouts_.emplace(fingerprint, Entry{std::make_shared<const Layout>(layout), {}, {}, {}})
                .first;
    Record(LayoutRecord(layout));
  }
  if (profile && entry->second.registered_profile != profile_hash) {
    Record(ProfileRecord(fingerprint, *profile));
    entry->second.profiles[*profile_hash] = {profile, 0};
    entry->second.registered_profile = entry->second.current_profile = profile_hash;
  }
  if (ns == namespaces_.end()) {
    ns = namespaces_.emplace(std::string(name_space), Namespace{}).first;
    ns->second.chunk_tokens = chunk_tokens == 0 ? limits::kMaxChunkTokens : chunk_tokens;
    Record(NamespaceRecord(name_space, ns->second.chunk_tokens));
  }
  if (ns->second.fingerprints.insert(fingerprint).second) {
    Record(LayoutUseRecord(name_space, fingerprint));
  }
  return InUse(fingerprint, entry->second, ns->second.chunk_tokens);
}

absl::StatusOr<LayoutInUse> LayoutRegistry::Find(std::string_view name_space,
                                                 const Digest& fingerprint) const {
  MutexLock lock(mutex_);
  const auto ns = namespaces_.find(name_space);
  if (ns == namespaces_.end() || !ns->second.fingerprints.contains(fingerprint)) {
    return ErrorWith(
        absl::StatusCode::kFailedPrecondition, v1::REASON_UNKNOWN_LAYOUT,
        absl::StrCat("layout ", ToHex(fingerprint), " is not registered in namespace '",
                     std::string(name_space), "'; call RegisterLayout first"));
  }
  return InUse(fingerprint, layouts_.at(fingerprint), ns->second.chunk_tokens);
}

std::shared_ptr<const Layout> LayoutRegistry::FindLayout(const Digest& fingerprint) const {
  MutexLock lock(mutex_);
  const auto it = layouts_.find(fingerprint);
  return it == layouts_.end() ? nullptr : it->second.layout;
}

std::shared_ptr<const ModelProfile> LayoutRegistry::FindProfile(const Digest& fingerprint,
                                                                const Digest& profile_hash) const {
  MutexLock lock(mutex_);
  const auto it = layouts_.find(fingerprint);
  if (it == layouts_.end()) return nullptr;
  const auto kept = it->second.profiles.find(profile_hash);
  return kept == it->second.profiles.end() ? nullptr : kept->second.profile;
}

std::shared_ptr<const ModelProfile> LayoutRegistry::CurrentProfile(
    const Digest& fingerprint) const {
  MutexLock lock(mutex_);
  const auto it = layouts_.find(fingerprint);
  if (it == layouts_.end()) return nullptr;
  return InUse(fingerprint, it->second, 0).profile;
}

std::vector<KnownLayout> LayoutRegistry::List() const {
  std::vector<KnownLayout> out;
  MutexLock lock(mutex_);
  for (const auto& [fingerprint, entry] : layouts_) {
    out.push_back({fingerprint, entry.layout, entry.profiles, entry.current_profile});
  }
  return out;
}

std::optional<LayoutRegistry::Learnable> LayoutRegistry::FindLearnable(
    const Digest& fingerprint) const {
  MutexLock lock(mutex_);
  const auto it = layouts_.find(fingerprint);
  if (it == layouts_.end()) return std::nullopt;
  const Entry& entry = it->second;
  if (!HasChannels(*entry.layout)) return std::nullopt;
  Learnable out;
  if (entry.registered_profile) {
    out.registered = entry.profiles.at(*entry.registered_profile).profile;
    if (HasStatistics(*out.registered)) return std::nullopt;
  }
  if (entry.current_profile != entry.registered_profile) {
    out.learnt = entry.profiles.at(*entry.current_profile).profile;
  }
  return out;
}

absl::StatusOr<uint32_t> LayoutRegistry::AddLearnt(const Digest& fingerprint,
                                                   const ModelProfile* registered,
                                                   ModelProfile profile) {
  const Digest hash = profile.decoding_hash;
  MutexLock lock(mutex_);
  Entry& entry = layouts_.at(fingerprint);
  const ModelProfile* const now = entry.registered_profile
                                      ? entry.profiles.at(*entry.registered_profile).profile.get()
                                      : nullptr;
  if (now != registered) {
    return absl::AbortedError("another profile was registered while this one was learnt");
  }
  if (!entry.profiles.contains(hash)) {
    if (entry.Learnt() >= limits::kMaxLearntProfiles) {
      return LimitError("kMaxLearntProfiles",
                        absl::StrCat("blocks refer to ", entry.Learnt(),
                                     " learnt profiles of this layout; a new version waits until "
                                     "those of one are gone"));
    }
    entry.profiles[hash] = {std::make_shared<const ModelProfile>(std::move(profile)),
                            ++entry.last_version};
  }
  const KeptProfile& kept = entry.profiles.at(hash);
  if (kept.version == 0) return absl::AbortedError("a client registered this very profile before");
  entry.current_profile = hash;
  Record(LearntProfileRecord(fingerprint, kept.version, *kept.profile));
  return kept.version;
}

size_t LayoutRegistry::DropUnusedLearnt(
    const std::function<uint64_t(const Digest&, const Digest&)>& uses) {
  size_t dropped = 0;
  MutexLock lock(mutex_);
  for (auto& [fingerprint, entry] : layouts_) {
    for (auto it = entry.profiles.begin(); it != entry.profiles.end();) {
      const auto& [hash, kept] = *it;
      // New holders come through this registry; blocks that one encodes are counted before it lets
      // go of the profile.
      const bool unused = kept.version > 0 && hash != entry.current_profile &&
                          kept.profile.use_count() == 1 && uses(fingerprint, hash) == 0;
      if (!unused) {
        ++it;
        continue;
      }
      Record(ProfileGoneRecord(fingerprint, hash));
      it = entry.profiles.erase(it);
      ++dropped;
    }
  }
  return dropped;
}

size_t LayoutRegistry::size() const {
  MutexLock lock(mutex_);
  return layouts_.size();
}

void LayoutRegistry::RecordIn(Journal* journal) {
  MutexLock lock(mutex_);
  journal_ = journal;
}

void LayoutRegistry::EmitAll(const Journal::Emit& emit) const {
  MutexLock lock(mutex_);
  for (const auto& [fingerprint, entry] : layouts_) {
    emit(LayoutRecord(*entry.layout));
    const auto emit_profile = [&, &fp = fingerprint](const KeptProfile& kept) {
      emit(kept.version > 0 ? LearntProfileRecord(fp, kept.version, *kept.profile)
                            : ProfileRecord(fp, *kept.profile));
    };
    // What is read last counts: of the registered ones the last, of all the current one.
    for (const auto& [hash, kept] : entry.profiles) {
      if (hash != entry.current_profile && hash != entry.registered_profile) emit_profile(kept);
    }
    if (entry.registered_profile) emit_profile(entry.profiles.at(*entry.registered_profile));
    if (entry.current_profile != entry.registered_profile) {
      emit_profile(entry.profiles.at(*entry.current_profile));
    }
  }
  for (const auto& [name, ns] : namespaces_) {
    emit(NamespaceRecord(name, ns.chunk_tokens));
    for (const Digest& fingerprint : ns.fingerprints) emit(LayoutUseRecord(name, fingerprint));
  }
}

absl::Status LayoutRegistry::RestoreLayout(ByteSpan canonical) {
  LKV_ASSIGN_OR_RETURN(Layout layout, ParseLayout(canonical));
  const Digest fingerprint = LayoutFingerprint(layout);
  MutexLock lock(mutex_);
  if (!layouts_.contains(fingerprint)) {
    layouts_.emplace(fingerprint,
                     Entry{std::make_shared<const Layout>(std::move(layout)), {}, {}, {}});
  }
  return absl::OkStatus();
}

absl::Status LayoutRegistry::RestoreProfile(const Digest& fingerprint, uint32_t version,
                                            ByteSpan canonical) {
  MutexLock lock(mutex_);
  const auto it = layouts_.find(fingerprint);
  if (it == layouts_.end()) return absl::DataLossError("a profile's layout is not in the journal");
  Entry& entry = it->second;
  LKV_ASSIGN_OR_RETURN(ModelProfile profile, ParseProfile(canonical, *entry.layout));
  const Digest hash = ProfileHash(profile);
  entry.profiles[hash] = {std::make_shared<const ModelProfile>(std::move(profile)), version};
  entry.current_profile = hash;
  if (version == 0) entry.registered_profile = hash;
  entry.last_version = std::max(entry.last_version, version);
  return absl::OkStatus();
}

void LayoutRegistry::RestoreProfileGone(const Digest& fingerprint, const Digest& profile_hash) {
  MutexLock lock(mutex_);
  const auto it = layouts_.find(fingerprint);
  if (it == layouts_.end() || it->second.current_profile == profile_hash) return;
  const auto kept = it->second.profiles.find(profile_hash);
  if (kept != it->second.profiles.end() && kept->second.version > 0) {
    it->second.profiles.erase(kept);
  }
}

absl::Status LayoutRegistry::RestoreNamespace(std::string_view name_space, uint32_t chunk_tokens) {
  if (chunk_tokens < limits::kMinChunkTokens || chunk_tokens > limits::kMaxChunkTokens) {
    return absl::DataLossError("a namespace's chunk size in the journal is out of range");
  }
  MutexLock lock(mutex_);
  namespaces_[std::string(name_space)].chunk_tokens = chunk_tokens;
  return absl::OkStatus();
}

absl::Status LayoutRegistry::RestoreUse(std::string_view name_space, const Digest& fingerprint) {
  MutexLock lock(mutex_);
  const auto ns = namespaces_.find(name_space);
  if (ns == namespaces_.end() || !layouts_.contains(fingerprint)) {
    return absl::DataLossError("a layout in use, or its namespace, is not in the journal");
  }
  ns->second.fingerprints.insert(fingerprint);
  return absl::OkStatus();
}

}  // namespace latticekv
