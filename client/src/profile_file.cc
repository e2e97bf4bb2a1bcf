#include "client/src/profile_file.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "core/codec/cpu/float_cast.h"
#include "core/layout/rope.h"

namespace latticekv {
namespace {

// Values of a token whose rms is smaller than this count as zero (codec_model.py's bound).
constexpr double kMinRms = 1e-9;

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

// Rotates a key of one head back; `table` holds the token's sines and cosines, one per pair.
void RemoveRope(const RopeSpec& rope, const SinCos* table, float* key) {
  const uint32_t pairs = rope.rotary_dims / 2;
  for (uint32_t i = 0; i < pairs; ++i) {
    const bool neox = rope.style == RopeStyle::kNeox;
    float& x = key[neox ? i : 2 * i];
    float& y = key[neox ? i + pairs : 2 * i + 1];
    const float back_x = x * table[i].cos + y * table[i].sin;
    y = y * table[i].cos - x * table[i].sin;
    x = back_x;
  }
}

void DivideByRms(float* value, uint32_t count) {
  double sum = 0;
  for (uint32_t c = 0; c < count; ++c) sum += double{value[c]} * value[c];
  const double rms = std::max(std::sqrt(sum / count), kMinRms);
  for (uint32_t c = 0; c < count; ++c) value[c] = static_cast<float>(value[c] / rms);
}

}  // namespace

absl::StatusOr<ModelProfile> LoadProfile(const std::string& path, const Layout& layout) {
  LKV_ASSIGN_OR_RETURN(const SafetensorsReader reader, SafetensorsReader::Open(path));
  absl::StatusOr<ModelProfile> profile = ReadProfile(reader, layout);
  if (profile.ok()) return profile;
  return absl::Status(profile.status().code(),
                      absl::StrCat("'", path, "': ", std::string(profile.status().message())));
}

ProfileLearner::Moments ProfileLearner::Measure(const CacheFile& cache, size_t plane_index) {
  const auto views = cache.Views();
  const double tokens = cache.tokens - kSinkTokens;
  Moments out;
  std::vector<float> row;
  std::vector<SinCos> table;
  for (size_t l = 0; l < views.size(); ++l) {
    const PlaneView& view = views[l][plane_index];
    const PlaneSpec& plane = cache.layout.layers[l].planes[plane_index];
    const bool key = plane.role == PlaneRole::kKey;
    const uint32_t pairs = plane.rope.rotary_dims / 2;
    row.resize(plane.head_dim);
    // Layers may have rotary embeddings of their own; most have that of the layer before.
    if (l == 0 || plane.rope != cache.layout.layers[l - 1].planes[plane_index].rope) {
      table = RopeTable(plane.rope, 0, cache.tokens);
    }
    for (uint32_t h = 0; h < plane.heads; ++h) {
      std::vector<double> mean(plane.head_dim), deviation(plane.head_dim);
      // Two passes: sums of squares alone would lose the spread of channels with a large mean.
      for (const bool second : {false, true}) {
        for (uint32_t t = kSinkTokens; t < cache.tokens; ++t) {
          LoadRow(plane.dtype, view.data + t * view.token_stride + h * view.head_stride,
                  plane.head_dim, row.data());
          if (key) {
            RemoveRope(plane.rope, table.data() + size_t{t} * pairs, row.data());
          } else {
            DivideByRms(row.data(), plane.head_dim);
          }
          for (uint32_t c = 0; c < plane.head_dim; ++c) {
            if (second) {
              deviation[c] += (row[c] - mean[c]) * (row[c] - mean[c]);
            } else {
              mean[c] += row[c] / tokens;
            }
          }
        }
      }
      out.mean.insert(out.mean.end(), mean.begin(), mean.end());
      out.deviation.insert(out.deviation.end(), deviation.begin(), deviation.end());
    }
  }
  return out;
}

void ProfileLearner::Moments::Merge(const Moments& other, double weight, double other_weight) {
  if (mean.empty()) {
    *this = other;
    return;
  }
  const double total = weight + other_weight;
  for (size_t i = 0; i < mean.size(); ++i) {
    const double difference = other.mean[i] - mean[i];
    mean[i] += difference * other_weight / total;
    deviation[i] += other.deviation[i] + difference * difference * weight * other_weight / total;
  }
}

absl::Status ProfileLearner::Add(const CacheFile& cache) {
  const std::string& path = cache.reader.path();
  if (tokens_ > 0 && cache.layout.layers != layout_.layers) {
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
  const bool first = tokens_ == 0;
  layout_ = cache.layout;
  const double tokens = cache.tokens - kSinkTokens;
  key_.Merge(Measure(cache, 0), tokens_, tokens);
  value_.Merge(Measure(cache, 1), tokens_, tokens);
  tokens_ += tokens;
  if (energy.empty() || (!first && energy_.empty())) {
    energy_.clear();
    return absl::OkStatus();
  }
  energy_.resize(energy.size());
  for (size_t i = 0; i < energy.size(); ++i) energy_[i] += double{energy[i]} * cache.tokens;
  energy_tokens_ += cache.tokens;
  return absl::OkStatus();
}

void ProfileLearner::FillMoments(const Moments& moments, double weight, std::vector<float>& mean,
                                 std::vector<float>& sigma) {
  for (size_t i = 0; i < moments.mean.size(); ++i) {
    mean.push_back(static_cast<float>(moments.mean[i]));
    sigma.push_back(static_cast<float>(std::sqrt(moments.deviation[i] / weight)));
  }
}

ProfileStatistics ProfileLearner::Finish() const {
  ProfileStatistics out;
  for (double e : energy_) out.query_energy.push_back(static_cast<float>(e / energy_tokens_));
  FillMoments(key_, tokens_, out.key_mean, out.key_sigma);
  FillMoments(value_, tokens_, out.value_mean, out.value_sigma);
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
