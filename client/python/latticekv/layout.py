"""What the bytes of a cache mean: model, layers, planes, heads, dtype, rotary embedding (docs/format/layout.md)."""
from __future__ import annotations

import dataclasses
import enum
import itertools
from typing import Any, Mapping, Optional, Sequence

from latticekv._messages import message_class


class DType(enum.IntEnum):
    F16 = 1
    BF16 = 2
    F32 = 3

    @property
    def size_bytes(self) -> int:
        return 4 if self is DType.F32 else 2


class PlaneRole(enum.IntEnum):
    KEY = 1
    VALUE = 2
    OPAQUE = 3  # neither key nor value; stored exact


class RopeStyle(enum.IntEnum):
    NEOX = 1  # channel i pairs with i + rotary_dims/2
    INTERLEAVED = 2  # channel 2i pairs with 2i + 1


class RopeScalingKind(enum.IntEnum):
    LINEAR = 1
    DYNAMIC_NTK = 2
    LLAMA3 = 3
    YARN = 4


class Preset(enum.IntEnum):
    """What a copy costs a reader; see the table in README.md. DEFAULT leaves it to the daemon."""

    DEFAULT = 0
    EXACT = 1
    NEAR = 2
    FINE = 3
    HIGH = 4
    BALANCED = 5
    SMALL = 6
    TINY = 7
    SEED = 8  # the published stages that the codec grew from (docs/seed.md)


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """As the model's configuration gives it (docs/format/layout.md); fields that the kind does not use stay 0."""

    kind: RopeScalingKind
    factor: float = 0.0
    original_positions: int = 0
    sequence_positions: int = 0  # dynamic NTK: length of sequence that the base was computed for
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    beta_fast: float = 0.0
    beta_slow: float = 0.0
    truncate: bool = False
    attention_factor: float = 0.0  # yarn; 0: not given
    mscale: float = 0.0
    mscale_all_dim: float = 0.0

    @classmethod
    def of_config(cls, kind: str, said: Mapping[str, Any]) -> Optional[RopeScaling]:
        """The `rope_scaling` of a transformers configuration; None for kinds that have no fixed angles, or lack what they need."""

        def number(name: str, default: float = 0.0) -> float:
            value = said.get(name)
            return default if value is None else float(value)

        factor, original = number("factor"), int(number("original_max_position_embeddings"))
        if factor < 1.0:
            return None
        if kind == "linear":
            return cls(RopeScalingKind.LINEAR, factor)
        if original < 1:
            return None
        if kind == "llama3":
            return cls(RopeScalingKind.LLAMA3, factor, original, low_freq_factor=number("low_freq_factor"), high_freq_factor=number("high_freq_factor"))
        if kind == "yarn":
            truncate = said.get("truncate")
            return cls(RopeScalingKind.YARN, factor, original, beta_fast=number("beta_fast", 32.0), beta_slow=number("beta_slow", 1.0),
                       truncate=True if truncate is None else bool(truncate), attention_factor=number("attention_factor"), mscale=number("mscale"),
                       mscale_all_dim=number("mscale_all_dim"))
        return None


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary embedding of the first `rotary_dims` channels of every head."""

    style: RopeStyle
    rotary_dims: int
    base: float = 10000.0
    scaling: Optional[RopeScaling] = None

    @classmethod
    def of_config(cls, config: Any, head_dim: int) -> Optional[Rope]:
        """What a transformers configuration says of its keys' rotation, in halves (NEOX). None when it rotates nothing or in a way that a layout
        cannot describe (longrope, a base that grows with the sequence): such keys are stored as they are, larger, but right."""
        said = getattr(config, "rope_scaling", None) or getattr(config, "rope_parameters", None) or {}
        base = getattr(config, "rope_theta", None) or said.get("rope_theta")
        dims = int(head_dim * (getattr(config, "partial_rotary_factor", None) or said.get("partial_rotary_factor") or 1.0))
        kind = said.get("rope_type", said.get("type", "default"))
        if not base or dims < 2 or dims % 2:
            return None
        if kind == "default":
            return cls(RopeStyle.NEOX, dims, float(base))
        scaling = RopeScaling.of_config(kind, said)
        return None if scaling is None else cls(RopeStyle.NEOX, dims, float(base), scaling)


@dataclasses.dataclass(frozen=True)
class Plane:
    name: str
    role: PlaneRole
    heads: int
    head_dim: int
    dtype: DType = DType.F16
    rope: Optional[Rope] = None

    @property
    def token_bytes(self) -> int:
        return self.heads * self.head_dim * self.dtype.size_bytes


@dataclasses.dataclass(frozen=True)
class Layer:
    planes: tuple[Plane, ...]

    @property
    def token_bytes(self) -> int:
        return sum(plane.token_bytes for plane in self.planes)


@dataclasses.dataclass(frozen=True)
class Layout:
    model: str
    layers: tuple[Layer, ...]
    revision: str = ""

    @classmethod
    def uniform(cls, model: str, *, layers: int, kv_heads: int, head_dim: int, dtype: DType = DType.F16,
                rope: Optional[Rope] = None, revision: str = "") -> Layout:
        """`layers` equal layers with planes "k" (with `rope`) and "v"."""
        layer = Layer((Plane("k", PlaneRole.KEY, kv_heads, head_dim, dtype, rope), Plane("v", PlaneRole.VALUE, kv_heads, head_dim, dtype)))
        return cls(model, (layer,) * layers, revision)

    @property
    def token_bytes(self) -> int:
        return sum(layer.token_bytes for layer in self.layers)

    def to_proto(self) -> Any:
        out = message_class("Layout")(model=self.model, revision=self.revision)
        for layer, run in itertools.groupby(self.layers):
            added = out.layers.add(repeat=len(list(run)))
            for plane in layer.planes:
                p = added.planes.add(name=plane.name, role=int(plane.role), heads=plane.heads, head_dim=plane.head_dim, dtype=int(plane.dtype))
                if plane.rope is not None:
                    p.rope.style = int(plane.rope.style)
                    p.rope.rotary_dims = plane.rope.rotary_dims
                    p.rope.base = plane.rope.base
                    if plane.rope.scaling is not None:
                        for name, value in dataclasses.asdict(plane.rope.scaling).items():
                            setattr(p.rope.scaling, name, value)
        return out


@dataclasses.dataclass(frozen=True)
class RegisteredLayout:
    """A layout the daemon knows: what puts, look-ups and gets refer to."""

    layout: Layout
    namespace: str
    fingerprint: bytes
    chunk_tokens: int  # chunks of the namespace start at multiples of it
    profile_hash: bytes = b""  # of the profile the daemon encodes with; empty: none
    profile: bytes = dataclasses.field(default=b"", repr=False)  # canonical bytes, to register again with


def layer_offsets(layout: Layout) -> Sequence[int]:
    """Bytes a token of all layers before each layer."""
    return list(itertools.accumulate((layer.token_bytes for layer in layout.layers), initial=0))
