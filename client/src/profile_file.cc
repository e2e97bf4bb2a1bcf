#include "client/src/profile_file.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace latticekv {
namespace {

absl::Status ReadFloats(const SafetensorsReader& reader, const char* name,
                        std::vector<float>& out) {
  const SafetensorsReader::Tensor* tensor = reader.Find(name);
  if (tensor == nullptr) return absl::OkStatus();
  if (tensor->dtype != TensorDType::kF32) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is ", std::string(TensorDTypeName(tensor->dtype)), ", must be F32"));
  }
  out.resize(tensor->data.size() / sizeof(float));
  if (!out.empty()) std::memcpy(out.data(), tensor->data.data(), tensor->data.size());
  return absl::OkStatus();
}

absl::StatusOr<ModelProfile> ReadProfile(const SafetensorsReader& reader, const Layout& layout) {
  ProfileStatistics s;
  LKV_RETURN_IF_ERROR(ReadFloats(reader, "query_energy", s.query_energy));
  LKV_RETURN_IF_ERROR(ReadFloats(reader, "key_mean", s.key_mean));
  LKV_RETURN_IF_ERROR(ReadFloats(reader, "key_sigma", s.key_sigma));
  LKV_RETURN_IF_ERROR(ReadFloats(reader, "value_mean", s.value_mean));
  LKV_RETURN_IF_ERROR(ReadFloats(reader, "value_sigma", s.value_sigma));
  if (s.query_energy.empty() && s.key_mean.empty() && s.value_mean.empty()) {
    return absl::InvalidArgumentError(
        "it has neither query_energy nor means and sigmas; make a profile with "
        "'latticekv profile learn'");
  }
  return MakeProfile(layout, s);
}

}  // namespace

absl::StatusOr<ModelProfile> LoadProfile(const std::string& path, const Layout& layout) {
  LKV_ASSIGN_OR_RETURN(const SafetensorsReader reader, SafetensorsReader::Open(path));
  absl::StatusOr<ModelProfile> profile = ReadProfile(reader, layout);
  if (profile.ok()) return profile;
  return absl::Status(profile.status().code(),
                      absl::StrCat("'", path, "': ", std::string(profile.status().message())));
}

absl::Status ProfileLearner::Add(const CacheFile& cache) {
  const std::string& path = cache.reader.path();
  if (statistics_ && cache.layout.layers != layout().layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", path, "' has another layout than the caches before it"));
  }
  if (cache.tokens <= kSinkTokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "'", path, "' has ", cache.tokens, " tokens; more than ", kSinkTokens, " are needed"));
  }
  const std::vector<PlaneSpec>& planes = cache.layout.layers.front().planes;
  if (planes.size() < 2 || planes[0].role != PlaneRole::kKey ||
      planes[1].role != PlaneRole::kValue ||
      (planes.size() > 2 && planes[2].role == PlaneRole::kValue)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "'", path, "': a profile is learnt from caches with one key and one value plane"));
  }
  const PlaneSpec& key = planes.front();
  const size_t channels = cache.layout.layers.size() * key.heads * key.head_dim;
  std::vector<float> energy;
  LKV_RETURN_IF_ERROR(ReadFloats(cache.reader, "query_energy", energy));
  const bool same = energy_.empty() || energy.size() == energy_.size();
  if (!energy.empty() && (!same || (energy.size() != channels && energy.size() != channels / 2))) {
    return absl::InvalidArgumentError(absl::StrCat("'", path, "': query_energy has ", energy.size(),
                                                   " values, the layout needs ", channels / 2,
                                                   " or ", channels, ", all caches the same"));
  }
  const bool first = !statistics_;
  if (first) statistics_.emplace(cache.layout);
  statistics_->Add(cache.tokens, 0, cache.Views());
  if (energy.empty() || (!first && energy_.empty())) {
    energy_.clear();
    return absl::OkStatus();
  }
  energy_.resize(energy.size());
  for (size_t i = 0; i < energy.size(); ++i) energy_[i] += double{energy[i]} * cache.tokens;
  energy_tokens_ += cache.tokens;
  return absl::OkStatus();
}

ProfileStatistics ProfileLearner::Finish() const {
  ProfileStatistics out;
  for (double e : energy_) out.query_energy.push_back(static_cast<float>(e / energy_tokens_));
  const auto append = [](const std::vector<float>& from, std::vector<float>& to) {
    to.insert(to.end(), from.begin(), from.end());
  };
  for (size_t l = 0; l < layout().layers.size(); ++l) {
    const auto key = statistics_->MomentsOf(l, 0), value = statistics_->MomentsOf(l, 1);
    // Nothing but vectors that are not finite: of no use, and told by what is missing.
    if (!key || !value) return out;
    append(key->mean, out.key_mean);
    append(key->sigma, out.key_sigma);
    append(value->mean, out.value_mean);
    append(value->sigma, out.value_sigma);
  }
  return out;
}

absl::Status WriteProfile(const std::string& path, const Layout& layout,
                          const ProfileStatistics& s) {
  const std::vector<PlaneSpec>& planes = layout.layers.front().planes;
  const uint64_t layers = layout.layers.size();
  std::vector<std::pair<TensorInfo, const std::vector<float>*>> tensors;
  const auto add = [&](const char* name, const PlaneSpec& plane, uint64_t width,
                       const std::vector<float>& values) {
    if (values.empty()) return;
    tensors.push_back({{name, TensorDType::kF32, {layers, plane.heads, width}}, &values});
  };
  add("query_energy", planes[0], s.query_energy.size() / (layers * planes[0].heads),
      s.query_energy);
  add("key_mean", planes[0], planes[0].head_dim, s.key_mean);
  add("key_sigma", planes[0], planes[0].head_dim, s.key_sigma);
  add("value_mean", planes[1], planes[1].head_dim, s.value_mean);
  add("value_sigma", planes[1], planes[1].head_dim, s.value_sigma);
  std::vector<TensorInfo> infos;
  for (const auto& [info, values] : tensors) infos.push_back(info);
  SafetensorsMetadata metadata;
  if (!layout.model.empty()) metadata["model"] = layout.model;
  LKV_ASSIGN_OR_RETURN(SafetensorsWriter writer, SafetensorsWriter::Create(path, infos, metadata));
  for (const auto& [info, values] : tensors) {
    const MutableByteSpan data = writer.Data(info.name);
    std::memcpy(data.data(), values->data(), data.size());
  }
  return writer.Commit();
}

}  // namespace latticekv
