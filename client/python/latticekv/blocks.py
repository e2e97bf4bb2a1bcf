"""Requests' options and results of the data path."""
from __future__ import annotations

import dataclasses
from typing import Any, Optional, Union

import numpy as np
import numpy.typing as npt

from latticekv._messages import message_class
from latticekv.errors import LatticeKVError
from latticekv.layout import Preset
from latticekv.retry import RetryPolicy


@dataclasses.dataclass(frozen=True)
class ClientOptions:
    """The defaults suit a worker beside its daemon."""

    rpc_timeout_s: float = 30.0  # of calls that are not streams, each attempt
    stream_idle_timeout_s: float = 60.0  # a stream without any word from the server for so long is broken off and tried again
    # A put announces blocks ahead of their acknowledgements up to these (one block at least).
    max_inflight_blocks: int = 16
    max_inflight_bytes: int = 64 << 20
    retry: RetryPolicy = RetryPolicy()


@dataclasses.dataclass(frozen=True)
class Quality:
    """Measured on what was stored."""

    exact: bool
    profiled: bool  # False: logit_noise is the keys' relative error, no query energy was known
    logit_noise: float  # rms error of an attention logit, nats
    value_error: float  # rms relative error of a value vector

    @classmethod
    def from_proto(cls, proto: Any) -> Quality:
        return cls(proto.exact, proto.profiled, proto.logit_noise, proto.value_error)


@dataclasses.dataclass(frozen=True)
class QualityBounds:
    """What a reader demands; 0 means no bound."""

    max_logit_noise: float = 0.0
    max_value_error: float = 0.0
    require_exact: bool = False

    def to_proto(self) -> Any:
        return message_class("QualityBounds")(max_logit_noise=self.max_logit_noise, max_value_error=self.max_value_error,
                                              require_exact=self.require_exact)


@dataclasses.dataclass(frozen=True)
class SeedSettings:
    """Of Preset.SEED (docs/seed.md)."""

    key_bits: int = 3
    value_bits: int = 2
    group_scales: bool = False  # a scale for 8 coordinates instead of one for the vector
    token_delta: bool = True

    def to_proto(self) -> Any:
        return message_class("SeedSettings")(key_bits=self.key_bits, value_bits=self.value_bits, group_scales=self.group_scales,
                                             no_token_delta=not self.token_delta)


@dataclasses.dataclass(frozen=True)
class BlockInfo:
    content_hash: bytes
    parent_hash: bytes  # empty: the first of its sequence
    start_position: int
    tokens: int
    stored_bytes: int
    raw_bytes: int
    preset: Union[Preset, int]
    quality: Quality
    on_disk: bool
    pinned: bool
    evicted_tokens: int = 0  # they read as zeros

    @classmethod
    def from_proto(cls, proto: Any) -> BlockInfo:
        preset = Preset(proto.preset) if proto.preset in Preset._value2member_map_ else proto.preset
        return cls(proto.content_hash, proto.parent_hash, proto.start_position, proto.tokens, proto.stored_bytes, proto.raw_bytes, preset,
                   Quality.from_proto(proto.quality), proto.tier == 2, proto.pinned, proto.evicted_tokens)


@dataclasses.dataclass(frozen=True)
class BlockResult:
    """What became of one chunk of a put."""

    content_hash: bytes
    start_position: int
    tokens: int
    error: Optional[LatticeKVError]  # set: the block was not stored
    have_it: bool  # it was stored already, at least as good; no payload was sent
    stored_bytes: int
    raw_bytes: int
    quality: Quality
    durable: bool


@dataclasses.dataclass(frozen=True)
class PutResult:
    blocks: list[BlockResult]  # in order of position
    sent_bytes: int  # payload that went over the wire

    @property
    def stored_bytes(self) -> int:
        return sum(block.stored_bytes for block in self.blocks if block.error is None)

    @property
    def raw_bytes(self) -> int:
        return sum(block.raw_bytes for block in self.blocks if block.error is None)

    @property
    def error(self) -> Optional[LatticeKVError]:
        """The first block's error; None when all are stored."""
        return next((block.error for block in self.blocks if block.error is not None), None)


@dataclasses.dataclass(frozen=True)
class LookupBlock:
    block: BlockInfo
    usable_tokens: int  # leading tokens of the block that match


@dataclasses.dataclass(frozen=True)
class LookupResult:
    usable_tokens: int
    blocks: list[LookupBlock]  # longest stored prefix, in order
    miss: Optional[LatticeKVError]  # why the first missing block is missing; None: everything is stored

    @property
    def content_hashes(self) -> list[bytes]:
        return [found.block.content_hash for found in self.blocks]


@dataclasses.dataclass(frozen=True)
class Prefix:
    """A restored prefix: planes[layer - first_layer][plane] is [len(tokens), heads, head_dim]."""

    tokens: npt.NDArray[np.uint32]  # empty where the blocks were stored without ids
    token_count: int
    planes: list[list[Any]]
    blocks: list[BlockInfo]
    miss: Optional[LatticeKVError]  # set: a block is missing and the prefix ends before it
    keep: Optional[npt.NDArray[np.bool_]] = None  # False where a token was evicted and reads as zeros; None: nowhere


@dataclasses.dataclass(frozen=True)
class SessionSummary:
    namespace: str
    name: str
    blocks: int
    tokens: int
    raw_bytes: int
    stored_bytes: int
    ratio: float
    created_ms: int
    last_used_ms: int
    expires_ms: int  # 0: never
    pinned: bool
    model: str
    missing_blocks: int  # evicted since they were put

    @classmethod
    def from_proto(cls, proto: Any) -> SessionSummary:
        return cls(**{field.name: getattr(proto, field.name) for field in dataclasses.fields(cls)})
