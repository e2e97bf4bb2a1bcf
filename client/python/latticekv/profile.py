"""Model profiles: what the codec takes from a model instead of from every chunk (docs/format/profile.md)."""
from __future__ import annotations

import dataclasses
import struct
from typing import Any, Optional

import numpy as np
import numpy.typing as npt

from latticekv.layout import Layout, Plane, PlaneRole, RopeStyle

_MAGIC, _VERSION = b"LKVP", 1
_HAS_STATISTICS, _HAS_STEPS = 1, 2
# Channels whose queries are dead (energy 0 exactly, seen in real models) get this share of the mean.
_ENERGY_FLOOR = 1e-4
_MAX_LOG2_SIGMA_16, _MAX_MEAN_EXPONENT, _MAX_MEAN = 1024, 96, 1 << 20

Array = npt.NDArray[Any]


def _canonical(plane: Plane) -> Array:
    """Channel of the layout for each canonical channel (docs/format/frame.md, "Channel order")."""
    order = np.arange(plane.head_dim)
    if plane.rope is not None and plane.rope.style is RopeStyle.INTERLEAVED:
        dims = plane.rope.rotary_dims
        order[:dims] = np.concatenate([np.arange(0, dims, 2), np.arange(1, dims, 2)])
    return order


@dataclasses.dataclass(frozen=True)
class ModelProfile:
    """Statistics of a model's layers of one key and one value plane, [layers, kv_heads, head_dim] in the layout's channel order.

    query_energy is E[q^2] before rotary embedding, averaged over the query heads that share a key head; it may be
    [layers, kv_heads, head_dim / 2], one per rotary pair. Keys are measured before rotary embedding, values divided by their token's rms.
    """

    query_energy: Optional[Array] = None
    key_mean: Optional[Array] = None
    key_sigma: Optional[Array] = None
    value_mean: Optional[Array] = None
    value_sigma: Optional[Array] = None

    def canonical_bytes(self, layout: Layout, fingerprint: bytes) -> bytes:
        """ValueError when the statistics do not fit `layout`."""
        decoding = [_MAGIC, struct.pack("<B", _VERSION), fingerprint]
        energy: list[bytes] = []
        for l, layer in enumerate(layout.layers):
            for plane in layer.planes:
                if plane.role is PlaneRole.OPAQUE:
                    continue
                for h in range(plane.heads):
                    self._head(plane, l, h, decoding, energy)
        return b"".join(decoding + energy)

    def _row(self, name: str, layer: int, head: int, sizes: tuple[int, ...]) -> Optional[Array]:
        values: Optional[Array] = getattr(self, name)
        if values is None:
            return None
        row: Array = np.asarray(values, np.float64)[layer, head]
        if row.shape[0] not in sizes or not np.isfinite(row).all() or (name != "key_mean" and name != "value_mean" and (row < 0).any()):
            raise ValueError(f"profile: {name} of layer {layer} does not fit the layout, or is not finite, or is negative")
        return row

    def _head(self, plane: Plane, layer: int, head: int, decoding: list[bytes], energy: list[bytes]) -> None:
        order = _canonical(plane)
        kind = "key" if plane.role is PlaneRole.KEY else "value"
        mean = self._row(f"{kind}_mean", layer, head, (plane.head_dim,))
        sigma = self._row(f"{kind}_sigma", layer, head, (plane.head_dim,))
        if (mean is None) != (sigma is None):
            raise ValueError("profile: give means and sigmas together")
        queries = self._row("query_energy", layer, head, (plane.head_dim, plane.head_dim // 2)) if kind == "key" else None
        energies, average = (None, 0.0) if queries is None else _energies(plane, queries, order)
        decoding.append(struct.pack("<B", (_HAS_STATISTICS if mean is not None else 0) | (_HAS_STEPS if energies is not None else 0)))
        if mean is not None and sigma is not None:
            decoding.extend(_statistics(mean[order], sigma[order]))
        if energies is None:
            energy.append(b"\0")
            return
        decoding.append(np.rint(-8 * np.log2(energies / average)).astype("<i2").tobytes())
        energy.append(struct.pack("<Bf", 1, average) + energies.astype("<f4").tobytes())


def _statistics(mean: Array, sigma: Array) -> list[bytes]:
    largest = float(np.abs(mean).max())
    exponent = int(np.frexp(largest)[1]) - 20 if largest > 0 else 0
    exponent = max(-_MAX_MEAN_EXPONENT, min(_MAX_MEAN_EXPONENT, exponent))
    means = np.clip(np.rint(np.ldexp(mean, -exponent)), -_MAX_MEAN, _MAX_MEAN)
    with np.errstate(divide="ignore"):
        spreads = np.clip(np.rint(16 * np.log2(sigma)), -_MAX_LOG2_SIGMA_16, _MAX_LOG2_SIGMA_16)
    return [struct.pack("<h", exponent), means.astype("<i4").tobytes(), spreads.astype("<i2").tobytes()]


def _energies(plane: Plane, queries: Array, order: Array) -> tuple[Optional[Array], float]:
    """Energies in canonical order with dead channels raised and rotary pairs equal, and their mean."""
    if len(queries) != plane.head_dim:  # one per pair
        interleaved = plane.rope is not None and plane.rope.style is RopeStyle.INTERLEAVED
        queries = np.repeat(queries, 2) if interleaved else np.tile(queries, 2)
    average = float(queries.mean())
    if average <= 0:
        return None, 0.0  # no query ever looked: as good as unknown
    canonical = np.maximum(queries[order], _ENERGY_FLOOR * average)
    pairs = plane.rope.rotary_dims // 2 if plane.rope is not None else 0
    halves = (canonical[:pairs] + canonical[pairs: 2 * pairs]) / 2
    canonical[:pairs] = canonical[pairs: 2 * pairs] = halves
    return canonical, average
