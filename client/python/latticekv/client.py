"""The client of a LatticeKV daemon."""
from __future__ import annotations

import dataclasses
from typing import Any, Callable, Iterator, Optional, Sequence, TypeVar

import grpc

from latticekv._get import PrefixReader
from latticekv._messages import METHODS, message_class
from latticekv._put import PutPlan, run_put
from latticekv._rpc import Rpc
from latticekv.blocks import (BlockInfo, ClientOptions, LookupBlock, LookupResult, Prefix, PutResult, QualityBounds, SeedSettings, SessionSummary)
from latticekv.errors import BadReplyError, LatticeKVError, UnknownLayoutError, from_miss
from latticekv.keys import token_array
from latticekv.layout import Layout, Preset, RegisteredLayout
from latticekv.profile import ModelProfile
from latticekv.retry import RetryState

T = TypeVar("T")
_ENCODING_RAW = 1
_STATE_MEMORY, _STATE_DURABLE = 1, 2
MAX_LOOKUP_TOKENS = 1 << 20  # kMaxLookupTokens


class Client:
    """Thread-safe. Calls that find the daemon unavailable are repeated as ClientOptions.retry says; a daemon that was restarted, and so has
    forgotten a layout, is told it again. Errors are those of latticekv.errors; arguments that make no sense raise ValueError."""

    def __init__(self, address: str, options: ClientOptions = ClientOptions(), *, credentials: Optional[grpc.ChannelCredentials] = None,
                 metadata: Sequence[tuple[str, str]] = ()) -> None:
        """`address` is unix:PATH or HOST:PORT. `credentials` make the channel TLS, `metadata` goes with every call."""
        self._rpc = Rpc(address, credentials, tuple(metadata))
        self._options = options

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls under way end as cancelled."""
        self._rpc.channel.close()

    def register_layout(self, layout: Layout, *, namespace: str = "", profile: Optional[ModelProfile] = None, chunk_tokens: int = 0) -> RegisteredLayout:
        """Makes a layout, and optionally its model profile, known to the daemon. Idempotent. `chunk_tokens`: see docs/protocol.md, "Words"."""
        registered = self._register(layout, namespace, b"", chunk_tokens)
        if profile is None:
            return registered
        return self._register(layout, namespace, profile.canonical_bytes(layout, registered.fingerprint), chunk_tokens)

    def put(self, layout: RegisteredLayout, tokens: Any, planes: Sequence[Sequence[Any]], *, preset: Preset = Preset.DEFAULT, session: str = "",
            start: int = 0, durable: bool = False, ttl_ms: int = 0, salt: str = "", exact_positions: Sequence[int] = (),
            attention_mass: Any = None, mass_queries: int = 0, keep: Any = None, seed: Optional[SeedSettings] = None,
            partial_ok: bool = False) -> PutResult:
        """Stores the cache of a token sequence: cuts it into chunks, skips those the daemon has and sends the rest.

        `tokens` are the ids of the whole sequence from position 0, since a block's name depends on all tokens before it. `planes` is
        [layer][plane] of numpy arrays or torch tensors [tokens, heads, head_dim] from position `start` (a multiple of layout.chunk_tokens) on.
        `exact_positions` are stored bit for bit. `attention_mass` [layers, tokens from `start` on] is the attention that each token received (summed over
        query heads and queries, of which `mass_queries` could see the token at `start`; 0: as many as there are tokens): steps are finer where
        readers look, around the mean of these tokens, so put a text at once. `keep` (true or false for every token from position 0 on) evicts tokens: they read as zeros, and only by who sets
        accept_evicted. `seed` sets Preset.SEED. Raises the first error of a block, with `.result` for the others, unless `partial_ok`.
        Idempotent: after an error, put again.
        """
        plan = PutPlan(layout, tokens, planes, start, salt, exact_positions, keep, attention_mass, mass_queries)

        def attempt() -> PutResult:
            opened = message_class("PutBlocksRequest")(open=message_class("PutOpen")(
                namespace=layout.namespace, fingerprint=layout.fingerprint, session=session, preset=int(preset),
                wait_for=_STATE_DURABLE if durable else _STATE_MEMORY, ttl_ms=ttl_ms, encoding=_ENCODING_RAW, seed=seed.to_proto() if seed else None))
            return PutResult(*run_put(self._rpc, plan, opened, self._options))

        result = self._with_layout(layout, attempt)
        if result.error is not None and not partial_ok:
            result.error.result = result
            raise result.error
        return result

    def lookup(self, layout: RegisteredLayout, tokens: Any, *, salt: str = "", bounds: QualityBounds = QualityBounds(),
               accept_evicted: bool = False) -> LookupResult:
        """The longest stored prefix of a token sequence."""
        ids = token_array(tokens)
        if len(ids) > MAX_LOOKUP_TOKENS:
            raise ValueError(f"{len(ids)} tokens, at most {MAX_LOOKUP_TOKENS} in one look-up")
        request = message_class("LookupRequest")(namespace=layout.namespace, fingerprint=layout.fingerprint, token_ids=ids.tolist(), salt=salt,
                                                 bounds=bounds.to_proto(), accept_evicted=accept_evicted)
        reply = self._unary("Lookup", request)
        blocks = [LookupBlock(BlockInfo.from_proto(found.block), found.usable_tokens) for found in reply.blocks]
        if sum(found.usable_tokens for found in blocks) != reply.usable_tokens or reply.usable_tokens > len(ids):
            raise BadReplyError(f"lookup: the server counts {reply.usable_tokens} usable tokens, which do not fit")
        return LookupResult(reply.usable_tokens, blocks, from_miss(reply.miss_reason, reply.miss_message))

    def stream(self, layout: RegisteredLayout, *, tokens: Any = None, blocks: Sequence[bytes] = (), session: str = "", salt: str = "",
               bounds: QualityBounds = QualityBounds(), accept_evicted: bool = False, first_layer: int = 0, layer_count: int = 0,
               torch: bool = False) -> PrefixReader:
        """Reads blocks layer by layer, so that the first layers can be used while the last are on their way, in the memory of one layer.

        Name the blocks by one of: `tokens` (their longest stored prefix), content hashes, or a session. The prefix ends before the first
        block that is missing (PrefixReader.miss says why). `torch` gives torch tensors; `layer_count` 0 means to the last.
        """
        if (tokens is not None) + bool(blocks) + bool(session) != 1:
            raise ValueError("ask for either tokens, blocks or a session")
        usable: Optional[int] = None
        miss: Optional[LatticeKVError] = None
        if tokens is not None:
            found = self.lookup(layout, tokens, salt=salt, bounds=bounds, accept_evicted=accept_evicted)
            blocks, usable, miss = found.content_hashes, found.usable_tokens, found.miss
            if not blocks:
                assert miss is not None
                raise miss
        reader = self._with_layout(layout, lambda: PrefixReader(self._rpc, layout, blocks, session, bounds, accept_evicted, first_layer,
                                                                layer_count, usable, torch, self._options))
        reader.miss = reader.miss or miss
        return reader

    def get(self, layout: RegisteredLayout, *, tokens: Any = None, blocks: Sequence[bytes] = (), session: str = "", salt: str = "",
            bounds: QualityBounds = QualityBounds(), accept_evicted: bool = False, first_layer: int = 0, layer_count: int = 0,
            torch: bool = False) -> Prefix:
        """Reads blocks, named as for stream(), into memory it allocates. Raises when not even the first block is there."""
        with self.stream(layout, tokens=tokens, blocks=blocks, session=session, salt=salt, bounds=bounds, accept_evicted=accept_evicted,
                         first_layer=first_layer, layer_count=layer_count, torch=torch) as reader:
            if not reader.blocks and reader.miss is not None:
                raise reader.miss
            layers = [planes for _, planes in reader]
            if not reader.blocks and reader.miss is not None:
                raise reader.miss
            count = reader.token_count
            return Prefix(reader.tokens, count, [[plane[:count] for plane in planes] for planes in layers], reader.blocks, reader.miss,
                          None if reader.keep is None else reader.keep[:count])

    def touch(self, *, namespace: str = "", blocks: Sequence[bytes] = (), session: str = "", ttl_ms: int = 0) -> tuple[int, int]:
        """Marks blocks as used; gives them a new time to live unless `ttl_ms` is 0. Returns how many were found and how many are missing."""
        return self._select("Touch", namespace, blocks, session, ttl_ms=ttl_ms)

    def pin(self, *, namespace: str = "", blocks: Sequence[bytes] = (), session: str = "", ttl_ms: int = 0) -> tuple[int, int]:
        """Keeps blocks from being evicted, for `ttl_ms` or (0) until unpinned."""
        return self._select("Pin", namespace, blocks, session, ttl_ms=ttl_ms)

    def unpin(self, *, namespace: str = "", blocks: Sequence[bytes] = (), session: str = "") -> tuple[int, int]:
        return self._select("Unpin", namespace, blocks, session)

    def delete(self, *, namespace: str = "", blocks: Sequence[bytes] = (), session: str = "") -> tuple[int, int]:
        """Deletes blocks, or a session and those of its blocks that no other session holds."""
        return self._select("Delete", namespace, blocks, session)

    def sessions(self, namespace: str = "") -> Iterator[SessionSummary]:
        """All sessions, or those of one namespace."""
        token = ""
        while True:
            page = self._unary("ListSessions", message_class("ListSessionsRequest")(namespace=namespace, page_token=token))
            yield from map(SessionSummary.from_proto, page.sessions)
            token = page.next_page_token
            if not token:
                return

    def session(self, name: str, *, namespace: str = "") -> SessionSummary:
        reply = self._unary("GetSession", message_class("GetSessionRequest")(namespace=namespace, name=name))
        return SessionSummary.from_proto(reply.summary)

    def stats(self) -> dict[str, Any]:
        """The daemon's counters, by the names of StatsResponse in admin_service.proto."""
        reply = self._unary("Stats", message_class("StatsRequest")())
        return {field.name: getattr(reply, field.name) for field in reply.DESCRIPTOR.fields}

    def _unary(self, name: str, request: Any) -> Any:
        retry = RetryState(self._options.retry)
        while True:
            try:
                return self._rpc.unary(name, request, self._options.rpc_timeout_s)
            except LatticeKVError as error:
                retry.wait(error)

    def _register(self, layout: Layout, namespace: str, profile: bytes, chunk_tokens: int) -> RegisteredLayout:
        request = message_class("RegisterLayoutRequest")(namespace=namespace, layout=layout.to_proto(), profile=profile, chunk_tokens=chunk_tokens)
        reply = self._unary("RegisterLayout", request)
        return RegisteredLayout(layout, namespace, reply.fingerprint, reply.chunk_tokens, reply.profile_hash, profile)

    def _with_layout(self, layout: RegisteredLayout, call: Callable[[], T]) -> T:
        try:
            return call()
        except UnknownLayoutError:
            again = self._register(layout.layout, layout.namespace, layout.profile, layout.chunk_tokens)
            if dataclasses.replace(again, profile_hash=layout.profile_hash) != layout:
                raise
            return call()

    def _select(self, method: str, namespace: str, blocks: Sequence[bytes], session: str, **more: Any) -> tuple[int, int]:
        selector = message_class("BlockSelector")(namespace=namespace, content_hashes=list(blocks), session=session)
        reply = self._unary(method, METHODS[method][1](blocks=selector, **more))
        return reply.found, reply.missing


def connect(address: str, options: ClientOptions = ClientOptions(), *, credentials: Optional[grpc.ChannelCredentials] = None,
            metadata: Sequence[tuple[str, str]] = ()) -> Client:
    """A client of the daemon at `address`: unix:PATH or HOST:PORT. The first call connects."""
    return Client(address, options, credentials=credentials, metadata=metadata)
