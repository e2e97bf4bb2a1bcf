// Rotary parameters between the layout and the wire, for client and server alike.
#ifndef LATTICEKV_PROTO_ROPE_PROTO_H_
#define LATTICEKV_PROTO_ROPE_PROTO_H_

#include "core/layout/layout.h"
#include "latticekv/v1/layout.pb.h"

namespace latticekv {

inline void RopeToProto(const RopeSpec& rope, v1::PlaneLayout* out) {
  if (rope.style == RopeStyle::kNone) return;
  v1::RopeParameters* r = out->mutable_rope();
  r->set_style(static_cast<v1::RopeStyle>(rope.style));
  r->set_rotary_dims(rope.rotary_dims);
  r->set_base(rope.base);
  const RopeScaling& from = rope.scaling;
  if (from.kind == RopeScalingKind::kNone) return;
  v1::RopeScaling* s = r->mutable_scaling();
  s->set_kind(static_cast<v1::RopeScalingKind>(from.kind));
  s->set_factor(from.factor);
  s->set_original_positions(from.original_positions);
  s->set_sequence_positions(from.sequence_positions);
  s->set_low_freq_factor(from.low_freq_factor);
  s->set_high_freq_factor(from.high_freq_factor);
  s->set_beta_fast(from.beta_fast);
  s->set_beta_slow(from.beta_slow);
  s->set_truncate(from.truncate);
  s->set_attention_factor(from.attention_factor);
  s->set_mscale(from.mscale);
  s->set_mscale_all_dim(from.mscale_all_dim);
}

// As it is said; ValidateLayout judges it. Enums out of range come back as such.
inline RopeSpec RopeFromProto(const v1::RopeParameters& r) {
  RopeSpec rope;
  if (r.style() == v1::ROPE_STYLE_NONE) return rope;
  const auto narrow = [](int value) {
    return static_cast<uint8_t>(value < 0 || value > 255 ? 255 : value);
  };
  rope.style = static_cast<RopeStyle>(narrow(r.style()));
  rope.rotary_dims = r.rotary_dims();
  rope.base = r.base();
  const v1::RopeScaling& s = r.scaling();
  rope.scaling = {static_cast<RopeScalingKind>(narrow(s.kind())),
                  s.factor(),
                  s.original_positions(),
                  s.sequence_positions(),
                  s.low_freq_factor(),
                  s.high_freq_factor(),
                  s.beta_fast(),
                  s.beta_slow(),
                  s.truncate(),
                  s.attention_factor(),
                  s.mscale(),
                  s.mscale_all_dim()};
  return rope;
}

}  // namespace latticekv

#endif  // LATTICEKV_PROTO_ROPE_PROTO_H_
