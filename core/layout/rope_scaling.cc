#include "core/layout/rope_scaling.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"

namespace latticekv {
namespace {

// Calls `field` with each field that the kind uses, in the order of their serialisation.
template <typename Scaling, typename Field>
void ForEachField(Scaling& s, Field field) {
  if (s.kind == RopeScalingKind::kNone) return;
  field(s.factor);
  if (s.kind == RopeScalingKind::kLinear) return;
  field(s.original_positions);
  switch (s.kind) {
    case RopeScalingKind::kDynamicNtk:
      field(s.sequence_positions);
      return;
    case RopeScalingKind::kLlama3:
      field(s.low_freq_factor);
      field(s.high_freq_factor);
      return;
    case RopeScalingKind::kYarn:
      field(s.beta_fast);
      field(s.beta_slow);
      field(s.truncate);
      field(s.attention_factor);
      field(s.mscale);
      field(s.mscale_all_dim);
      return;
    default:
      return;
  }
}

bool Between(double low, double value, double high) { return value >= low && value <= high; }

// Zero (not given, and only +0, since it is hashed) or a sensible factor.
bool IsOptionalFactor(double value) {
  return (value == 0 && !std::signbit(value)) || Between(1e-3, value, 1e3);
}

}  // namespace

void SerializeRopeScaling(const RopeScaling& scaling, ByteWriter& out) {
  out.Put(static_cast<uint8_t>(scaling.kind));
  ForEachField(scaling, [&](auto value) {
    if constexpr (std::is_same_v<decltype(value), bool>) {
      out.Put<uint8_t>(value);
    } else {
      out.Put(value);
    }
  });
}

RopeScaling ParseRopeScaling(ByteReader& in) {
  RopeScaling out;
  out.kind = static_cast<RopeScalingKind>(in.Get<uint8_t>());
  ForEachField(out, [&](auto& value) {
    using T = std::remove_reference_t<decltype(value)>;
    if constexpr (std::is_same_v<T, bool>) {
      value = in.Get<uint8_t>() != 0;
    } else {
      value = in.Get<T>();
    }
  });
  return out;
}

std::string RopeScalingProblem(const RopeSpec& rope) {
  const RopeScaling& s = rope.scaling;
  if (s.kind > RopeScalingKind::kYarn) return "unknown kind of rope scaling";
  ByteWriter bytes;
  SerializeRopeScaling(s, bytes);
  ByteReader in(bytes.bytes());
  if (ParseRopeScaling(in) != s) {
    return "rope scaling has a field that its kind does not use, or one that is not a number";
  }
  if (s.kind == RopeScalingKind::kNone) return "";
  if (!Between(1, s.factor, limits::kMaxRopeScalingFactor)) {
    return absl::StrCat("rope scaling factor must be 1 to ", limits::kMaxRopeScalingFactor);
  }
  if (s.kind == RopeScalingKind::kLinear) return "";
  if (s.original_positions == 0) return "rope scaling needs original_positions";
  switch (s.kind) {
    case RopeScalingKind::kDynamicNtk:
      if (rope.rotary_dims < 4) return "dynamic rope scaling needs at least 4 rotary_dims";
      if (s.sequence_positions < s.original_positions) {
        return "dynamic rope scaling needs sequence_positions, at least original_positions";
      }
      return "";
    case RopeScalingKind::kLlama3:
      if (!Between(1e-3, s.low_freq_factor, 1e6) || !Between(1e-3, s.high_freq_factor, 1e6) ||
          s.low_freq_factor >= s.high_freq_factor) {
        return "llama3 rope scaling needs 0.001 <= low_freq_factor < high_freq_factor <= 1e6";
      }
      return "";
    default:
      if (rope.base < 1.001) return "yarn rope scaling needs a base above 1";
      if (!Between(1e-3, s.beta_slow, 1e6) || !Between(1e-3, s.beta_fast, 1e6) ||
          s.beta_slow > s.beta_fast) {
        return "yarn rope scaling needs 0.001 <= beta_slow <= beta_fast <= 1e6";
      }
      if (!IsOptionalFactor(s.attention_factor) || !IsOptionalFactor(s.mscale) ||
          !IsOptionalFactor(s.mscale_all_dim)) {
        return "yarn attention_factor, mscale and mscale_all_dim must be 0 (not given) or 0.001 to "
               "1000";
      }
      return "";
  }
}

}  // namespace latticekv
