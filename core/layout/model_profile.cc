#include "core/layout/model_profile.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/layout/head_statistics.h"

namespace latticekv {
namespace {

constexpr uint32_t kProfileMagic = 0x50564B4C;  // "LKVP"
constexpr uint8_t kProfileVersion = 1;
// Channels whose queries are dead (energy 0 exactly, seen in real models) get this share of the
// mean.
constexpr double kEnergyFloor = 1e-4;
constexpr int kMaxLog2Sigma16 = 1024;
constexpr int kMaxMeanExponent = 96;
constexpr int32_t kMaxMean = 1 << 20;

enum HeadFlags : uint8_t { kHasStatistics = 1, kHasSteps = 2 };

absl::Status CheckFinite(std::span<const float> values, const char* name, bool non_negative) {
  for (float v : values) {
    if (!std::isfinite(v) || (non_negative && v < 0)) {
      return absl::InvalidArgumentError(absl::StrCat("profile: ", name, " has a value that is ",
                                                     std::isfinite(v) ? "negative" : "not finite"));
    }
  }
  return absl::OkStatus();
}

// `energy` per layout channel.
void SetEnergy(const PlaneSpec& plane, std::vector<double> energy, std::span<const uint32_t> order,
               HeadProfile& out) {
  double mean = 0;
  for (double e : energy) mean += e;
  mean /= static_cast<double>(energy.size());
  if (mean <= 0) return;  // no query ever looked: as good as unknown
  std::vector<double> canonical;
  for (uint32_t c : order) canonical.push_back(std::max(energy[c], kEnergyFloor * mean));
  const uint32_t pairs = plane.rope.rotary_dims / 2;
  for (uint32_t i = 0; i < pairs; ++i) {
    canonical[i] = canonical[i + pairs] = (canonical[i] + canonical[i + pairs]) / 2;
  }
  out.mean_energy = static_cast<float>(mean);
  for (double e : canonical) {
    out.query_energy.push_back(static_cast<float>(e));
    out.step_16.push_back(static_cast<int16_t>(std::rint(-8 * std::log2(e / mean))));
  }
}

// Expands [head_dim] or [head_dim/2] energies of one head to layout channels.
std::vector<double> EnergyPerChannel(const PlaneSpec& plane, std::span<const float> energy) {
  std::vector<double> out(plane.head_dim);
  const size_t half = plane.head_dim / 2;
  for (size_t c = 0; c < out.size(); ++c) {
    size_t from = c;
    if (energy.size() == half) {
      from = plane.rope.style == RopeStyle::kInterleaved ? c / 2 : c % half;
    }
    out[c] = energy[from];
  }
  return out;
}

// Index of the plane with `role` in each layer's planes, or an error: statistics files describe
// layouts of one key and one value plane.
absl::StatusOr<size_t> FindPlane(const LayerSpec& layer, PlaneRole role) {
  for (size_t p = 0; p < layer.planes.size(); ++p) {
    if (layer.planes[p].role == role) return p;
  }
  return absl::InvalidArgumentError(
      "profile: every layer of the layout needs a key and a value plane");
}

struct Slice {
  std::span<const float> values;
  size_t at = 0;
  std::span<const float> Next(size_t count) {
    if (values.empty()) return {};
    auto out = values.subspan(at, count);
    at += count;
    return out;
  }
};

absl::Status CheckSize(size_t size, size_t expected, size_t also, const char* name) {
  if (size == 0 || size == expected || (also != 0 && size == also)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("profile: ", name, " has ", size, " values, the layout needs ", expected));
}

void SerializeDecodingPart(const ModelProfile& profile, ByteWriter& out) {
  out.Put(kProfileMagic);
  out.Put(kProfileVersion);
  out.PutBytes(profile.layout_fingerprint);
  for (const auto& layer : profile.layers) {
    for (const PlaneProfile& plane : layer) {
      for (const HeadProfile& head : plane.heads) {
        const uint8_t flags =
            (head.has_statistics() ? kHasStatistics : 0) | (head.step_16.empty() ? 0 : kHasSteps);
        out.Put(flags);
        if (head.has_statistics()) out.Put(head.mean_exponent);
        for (int32_t m : head.mean) out.Put(m);
        for (int16_t s : head.log2_sigma_16) out.Put(s);
        for (int16_t s : head.step_16) out.Put(s);
      }
    }
  }
}

absl::Status ParseHead(const PlaneSpec& plane, ByteReader& in, HeadProfile& head) {
  const uint8_t flags = in.Get<uint8_t>();
  if (flags & ~(kHasStatistics | kHasSteps)) return absl::DataLossError("profile: bad flags");
  if (flags & kHasStatistics) {
    head.mean_exponent = in.Get<int16_t>();
    for (uint32_t c = 0; c < plane.head_dim; ++c) head.mean.push_back(in.Get<int32_t>());
    for (uint32_t c = 0; c < plane.head_dim; ++c) head.log2_sigma_16.push_back(in.Get<int16_t>());
  }
  if (flags & kHasSteps) {
    for (uint32_t c = 0; c < plane.head_dim; ++c) head.step_16.push_back(in.Get<int16_t>());
  }
  if (!in.ok()) return absl::DataLossError("profile: truncated");
  bool good = std::abs(head.mean_exponent) <= kMaxMeanExponent;
  for (int32_t m : head.mean) good &= m >= -kMaxMean && m <= kMaxMean;
  for (int16_t s : head.log2_sigma_16) good &= std::abs(int{s}) <= kMaxLog2Sigma16;
  for (int16_t s : head.step_16) good &= std::abs(int{s}) <= kMaxLog2Sigma16;
  if (plane.role == PlaneRole::kValue) good &= head.step_16.empty();
  const uint32_t pairs = plane.rope.rotary_dims / 2;
  for (uint32_t i = 0; i < pairs && !head.step_16.empty(); ++i) {
    good &= head.step_16[i] == head.step_16[i + pairs];
  }
  return good ? absl::OkStatus() : absl::DataLossError("profile: a number is out of range");
}

}  // namespace

void SetHeadStatistics(const PlaneSpec& plane, std::span<const float> mean,
                       std::span<const float> sigma, HeadProfile& out) {
  out.mean.clear();
  out.log2_sigma_16.clear();
  double largest = 0;
  for (float m : mean) largest = std::max(largest, std::abs(static_cast<double>(m)));
  int exponent = largest > 0 ? std::ilogb(largest) + 1 - 20 : 0;
  exponent = std::clamp(exponent, -kMaxMeanExponent, kMaxMeanExponent);
  out.mean_exponent = static_cast<int16_t>(exponent);
  for (uint32_t c : CanonicalChannels(plane)) {
    const double m = std::clamp(std::rint(std::ldexp(static_cast<double>(mean[c]), -exponent)),
                                -double{kMaxMean}, double{kMaxMean});
    out.mean.push_back(static_cast<int32_t>(m));
    const double s = sigma[c] > 0 ? std::rint(16 * std::log2(static_cast<double>(sigma[c])))
                                  : -double{kMaxLog2Sigma16};
    out.log2_sigma_16.push_back(
        static_cast<int16_t>(std::clamp(s, -double{kMaxLog2Sigma16}, double{kMaxLog2Sigma16})));
  }
}

absl::StatusOr<ModelProfile> MakeProfile(const Layout& layout, const ProfileStatistics& s) {
  LKV_RETURN_IF_ERROR(ValidateLayout(layout));
  size_t key_channels = 0, value_channels = 0;
  for (const LayerSpec& layer : layout.layers) {
    LKV_ASSIGN_OR_RETURN(const size_t k, FindPlane(layer, PlaneRole::kKey));
    LKV_ASSIGN_OR_RETURN(const size_t v, FindPlane(layer, PlaneRole::kValue));
    key_channels += size_t{layer.planes[k].heads} * layer.planes[k].head_dim;
    value_channels += size_t{layer.planes[v].heads} * layer.planes[v].head_dim;
  }
  LKV_RETURN_IF_ERROR(
      CheckSize(s.query_energy.size(), key_channels / 2, key_channels, "query_energy"));
  const bool pairwise = s.query_energy.size() == key_channels / 2;
  LKV_RETURN_IF_ERROR(CheckSize(s.key_mean.size(), key_channels, 0, "key_mean"));
  LKV_RETURN_IF_ERROR(CheckSize(s.key_sigma.size(), key_channels, 0, "key_sigma"));
  LKV_RETURN_IF_ERROR(CheckSize(s.value_mean.size(), value_channels, 0, "value_mean"));
  LKV_RETURN_IF_ERROR(CheckSize(s.value_sigma.size(), value_channels, 0, "value_sigma"));
  if (s.key_mean.empty() != s.key_sigma.empty() || s.value_mean.empty() != s.value_sigma.empty()) {
    return absl::InvalidArgumentError("profile: give means and sigmas together");
  }
  LKV_RETURN_IF_ERROR(CheckFinite(s.query_energy, "query_energy", true));
  LKV_RETURN_IF_ERROR(CheckFinite(s.key_mean, "key_mean", false));
  LKV_RETURN_IF_ERROR(CheckFinite(s.key_sigma, "key_sigma", true));
  LKV_RETURN_IF_ERROR(CheckFinite(s.value_mean, "value_mean", false));
  LKV_RETURN_IF_ERROR(CheckFinite(s.value_sigma, "value_sigma", true));

  ModelProfile profile;
  profile.layout_fingerprint = LayoutFingerprint(layout);
  Slice energy{s.query_energy}, key_mean{s.key_mean}, key_sigma{s.key_sigma};
  Slice value_mean{s.value_mean}, value_sigma{s.value_sigma};
  for (const LayerSpec& layer : layout.layers) {
    const size_t k = *FindPlane(layer, PlaneRole::kKey), v = *FindPlane(layer, PlaneRole::kValue);
    std::vector<PlaneProfile> planes(layer.planes.size());
    for (size_t p = 0; p < layer.planes.size(); ++p) {
      const PlaneSpec& plane = layer.planes[p];
      if (plane.role == PlaneRole::kOpaque) continue;
      planes[p].heads.resize(plane.heads);
      if (p != k && p != v) continue;
      const std::vector<uint32_t> order = CanonicalChannels(plane);
      for (HeadProfile& head : planes[p].heads) {
        const auto mean = (p == k ? key_mean : value_mean).Next(plane.head_dim);
        const auto sigma = (p == k ? key_sigma : value_sigma).Next(plane.head_dim);
        if (!mean.empty()) SetHeadStatistics(plane, mean, sigma, head);
        if (p != k || s.query_energy.empty()) continue;
        SetEnergy(plane, EnergyPerChannel(plane, energy.Next(plane.head_dim / (pairwise ? 2 : 1))),
                  order, head);
      }
    }
    profile.layers.push_back(std::move(planes));
  }
  profile.decoding_hash = ProfileHash(profile);
  return profile;
}

ByteVector SerializeProfile(const ModelProfile& profile) {
  ByteWriter out;
  SerializeDecodingPart(profile, out);
  for (const auto& layer : profile.layers) {
    for (const PlaneProfile& plane : layer) {
      for (const HeadProfile& head : plane.heads) {
        out.Put<uint8_t>(head.query_energy.empty() ? 0 : 1);
        if (head.query_energy.empty()) continue;
        out.Put(head.mean_energy);
        for (float e : head.query_energy) out.Put(e);
      }
    }
  }
  return out.Take();
}

absl::StatusOr<ModelProfile> ParseProfile(ByteSpan bytes, const Layout& layout) {
  if (bytes.size() > limits::kMaxProfileBytes)
    return absl::DataLossError("profile: too many bytes");
  ByteReader in(bytes);
  if (in.Get<uint32_t>() != kProfileMagic) return absl::DataLossError("profile: bad magic");
  if (const int version = in.Get<uint8_t>(); in.ok() && version != kProfileVersion) {
    return absl::UnimplementedError(absl::StrCat("profile: unknown version ", version));
  }
  ModelProfile profile;
  const ByteSpan fingerprint = in.GetBytes(profile.layout_fingerprint.size());
  if (!in.ok()) return absl::DataLossError("profile: truncated");
  std::copy(fingerprint.begin(), fingerprint.end(), profile.layout_fingerprint.begin());
  if (profile.layout_fingerprint != LayoutFingerprint(layout)) {
    return absl::FailedPreconditionError(
        "profile: made for another layout; learn one for this layout");
  }
  for (const LayerSpec& layer : layout.layers) {
    std::vector<PlaneProfile> planes(layer.planes.size());
    for (size_t p = 0; p < planes.size(); ++p) {
      if (layer.planes[p].role == PlaneRole::kOpaque) continue;
      planes[p].heads.resize(layer.planes[p].heads);
      for (HeadProfile& head : planes[p].heads) {
        LKV_RETURN_IF_ERROR(ParseHead(layer.planes[p], in, head));
      }
    }
    profile.layers.push_back(std::move(planes));
  }
  for (size_t l = 0; l < profile.layers.size(); ++l) {
    for (size_t p = 0; p < profile.layers[l].size(); ++p) {
      for (HeadProfile& head : profile.layers[l][p].heads) {
        if (in.Get<uint8_t>() == 0) continue;
        head.mean_energy = in.Get<float>();
        for (uint32_t c = 0; c < layout.layers[l].planes[p].head_dim; ++c) {
          head.query_energy.push_back(in.Get<float>());
        }
        bool good = in.ok() && std::isfinite(head.mean_energy) && head.mean_energy > 0 &&
                    !head.step_16.empty();
        for (float e : head.query_energy) good &= std::isfinite(e) && e > 0;
        if (!good) return absl::DataLossError("profile: damaged query energy");
      }
    }
  }
  if (!in.ok() || in.remaining() != 0) return absl::DataLossError("profile: wrong length");
  profile.decoding_hash = ProfileHash(profile);
  return profile;
}

Digest ProfileHash(const ModelProfile& profile) {
  ByteWriter out;
  SerializeDecodingPart(profile, out);
  return Sha256Of(out.bytes());
}

}  // namespace latticekv
