"""The put: announces chunks, sends the payload of those the server wants, and collects its acknowledgements."""
from __future__ import annotations

import collections
import struct
import threading
from typing import Any, Iterator, Optional, Sequence

import google_crc32c
import numpy as np
import numpy.typing as npt

from latticekv._messages import message_class
from latticekv._rpc import Rpc, Watchdog, read_stream
from latticekv.blocks import BlockResult, ClientOptions, Quality
from latticekv.errors import BadReplyError, LatticeKVError, UnavailableError, from_detail
from latticekv.keys import chain_hashes, keep_array, token_array
from latticekv.layout import RegisteredLayout
from latticekv.retry import RetryState
from latticekv.tensors import check_plane, rows

MAX_PART_BYTES = 4 << 20  # kMaxPartBytes
MAX_UNACKED_BLOCKS = 64  # kMaxUnackedBlocksPerStream
SINK_TOKENS = 4  # stored bit for bit whatever attention they get


def mass_levels(mass: npt.NDArray[np.float32], queries: int, start: int, keep: Any) -> list[float]:
    """BlockHeader.mass_levels of a put's attention mass: core/codec/attention_mass.h, MassLevels."""
    at = np.arange(mass.shape[1])
    count = at + start >= SINK_TOKENS
    if keep is not None:
        count &= keep[start:].astype(bool)
    if not count.any():
        return [0.0] * len(mass)
    per_query = np.maximum(mass, 1e-4) / (np.maximum(queries - at, 0) + 32)
    return [float(level) for level in np.log2(per_query[:, count]).mean(1)]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def part_message(index: int, offset: int, data: bytes) -> bytes:
    """PutBlocksRequest{part{index, offset, crc32c, data}} on the wire: written here, since protobuf would copy the payload twice more."""
    head = b"\x08" + _varint(index) + b"\x10" + _varint(offset) + b"\x1d" + struct.pack("<I", google_crc32c.value(data))
    head += b"\x22" + _varint(len(data))
    return b"\x1a" + _varint(len(head) + len(data)) + head + data


class PutPlan:
    """What a put will send: its chunks, their names, and their payload. Raises ValueError when the tensors do not fit the layout."""

    def __init__(self, layout: RegisteredLayout, tokens: Any, planes: Sequence[Sequence[Any]], start: int, salt: str,
                 exact_positions: Sequence[int], keep: Any = None, attention_mass: Any = None, mass_queries: int = 0) -> None:
        self.layout, self.planes, self.start, self.salt = layout, planes, start, salt
        self.tokens = token_array(tokens)
        self.exact_positions = sorted(exact_positions)
        chunk = layout.chunk_tokens
        if start % chunk:
            raise ValueError(f"start is {start}, it must be a multiple of the namespace's chunk size {chunk}")
        if start >= len(self.tokens):
            raise ValueError(f"there are {len(self.tokens)} tokens, none at or after start {start}")
        layers = layout.layout.layers
        if len(planes) != len(layers):
            raise ValueError(f"tensors of {len(planes)} layers for a layout of {len(layers)}")
        for l, (layer, given) in enumerate(zip(layers, planes)):
            if len(given) != len(layer.planes):
                raise ValueError(f"layer {l} has {len(given)} tensors, the layout has {len(layer.planes)} planes")
            for plane, tensor in zip(layer.planes, given):
                check_plane(tensor, plane, f"plane {plane.name} of layer {l}", len(self.tokens) - start)
        self.keep = keep_array(keep, len(self.tokens))
        self.mass_queries = mass_queries or len(self.tokens) - start
        self.mass: Optional[npt.NDArray[np.float32]] = None
        if attention_mass is not None:
            if hasattr(attention_mass, "detach"):
                attention_mass = attention_mass.detach().float().cpu().numpy()
            self.mass = np.asarray(attention_mass, np.float32)
            if self.mass.shape != (len(layers), len(self.tokens) - start):
                raise ValueError(f"attention_mass has shape {self.mass.shape}; it must be [{len(layers)}, {len(self.tokens) - start}]")
            self.mass_levels = mass_levels(self.mass, self.mass_queries, start, self.keep)
        hashes = chain_hashes(layout.fingerprint, self.tokens, chunk, salt, self.keep)
        first = start // chunk
        self.hashes = hashes[first:]
        self.parents = ([b""] + hashes)[first:]
        self.starts = [start + i * chunk for i in range(len(self.hashes))]

    def chunk_size(self, index: int) -> int:
        return min(self.layout.chunk_tokens, len(self.tokens) - self.starts[index])

    def payload_bytes(self, index: int) -> int:
        return self.chunk_size(index) * self.layout.layout.token_bytes

    def header(self, index: int) -> Any:
        begin, size = self.starts[index], self.chunk_size(index)
        header = message_class("BlockHeader")(index=index, content_hash=self.hashes[index], parent_hash=self.parents[index], start_position=begin,
                                              token_ids=self.tokens[begin: begin + size].tolist(), payload_bytes=self.payload_bytes(index),
                                              salt=self.salt)
        header.exact_tokens.extend(p - begin for p in self.exact_positions if begin <= p < begin + size)
        if self.keep is not None:
            header.keep = self.keep[begin: begin + size].tobytes()
        if self.mass is not None:
            first = begin - self.start
            header.attention_mass.extend(self.mass[:, first: first + size].ravel().tolist())
            header.mass_queries = max(0, self.mass_queries - first)
            header.mass_levels.extend(self.mass_levels)
        return message_class("PutBlocksRequest")(header=header)

    def parts(self, index: int) -> Iterator[bytes]:
        """The chunk's payload in parts that end between tokens of a plane."""
        begin = self.starts[index] - self.start
        end = begin + self.chunk_size(index)
        gathered: list[memoryview] = []
        size = 0
        for layer, given in zip(self.layout.layout.layers, self.planes):
            for plane, tensor in zip(layer.planes, given):
                data, at, row = rows(tensor, begin, end), 0, plane.token_bytes
                while at < len(data):
                    take = min(len(data) - at, (MAX_PART_BYTES - size) // row * row)
                    if take:
                        gathered.append(data[at: at + take])
                        at, size = at + take, size + take
                    if at < len(data):
                        yield b"".join(gathered)
                        gathered, size = [], 0
        if gathered:
            yield b"".join(gathered)


class PutAttempt:
    """One stream of a put. gRPC's own thread takes what is to be written from `_requests`, the caller's thread reads."""

    def __init__(self, rpc: Rpc, plan: PutPlan, open_message: Any, options: ClientOptions, results: list[Optional[BlockResult]]) -> None:
        self._plan, self._options, self._results = plan, options, results
        self._changed = threading.Condition()
        self._waiting = collections.deque(i for i, result in enumerate(results) if result is None)
        self._ready: collections.deque[int] = collections.deque()
        self._announced: set[int] = set()
        self._credited: set[int] = set()
        self._inflight_bytes = 0
        self._unsettled = len(self._waiting)
        self._ended = False
        self._fault: Optional[BaseException] = None  # of reading the caller's tensors
        self.transient: Optional[LatticeKVError] = None  # a block that was refused for now
        self.sent_bytes = 0
        self._watchdog = Watchdog(options.stream_idle_timeout_s, lambda: self._call.cancel())
        self._started = threading.Event()
        self._call = rpc.stream("PutBlocks", self._requests(open_message))
        self._started.set()

    def run(self) -> None:
        """Returns when every chunk has an acknowledgement; raises what broke the stream. Results that came stay."""
        try:
            for message in read_stream(self._call, self._watchdog, self._options.stream_idle_timeout_s, "put"):
                kind = message.WhichOneof("message")
                if kind == "credit":
                    self._on_credit(message.credit.index)
                elif kind == "ack":
                    self._on_ack(message.ack)
        except BadReplyError:
            raise
        except LatticeKVError:
            if self._fault is None and self._unsettled:
                raise
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            self._call.cancel()
            self._watchdog.close()
        if self._fault is not None:
            raise self._fault
        if self._unsettled:
            raise UnavailableError(f"put: the server ended the stream with {self._unsettled} blocks unacknowledged", code="UNAVAILABLE")

    def _requests(self, open_message: Any) -> Iterator[Any]:
        try:
            yield open_message
            self._started.wait()
            while True:
                index, send = self._next()
                if index is None:
                    return
                if not send:
                    yield self._plan.header(index)
                    continue
                offset = 0
                for data in self._plan.parts(index):
                    with self._changed:
                        if self._ended or index not in self._announced:  # the server may refuse a block before all of it has come
                            break
                    yield part_message(index, offset, data)
                    offset += len(data)
                    self.sent_bytes += len(data)
                    self._watchdog.touch()
        except Exception as error:  # noqa: BLE001 - raised again by run() in the caller's thread
            self._fault = error
            self._call.cancel()

    def _next(self) -> tuple[Optional[int], bool]:
        """(chunk, whether to send its payload rather than announce it); (None, False) when there is nothing left."""
        limit = max(1, min(self._options.max_inflight_blocks, MAX_UNACKED_BLOCKS))
        with self._changed:
            while True:
                if self._ended or self._unsettled == 0:
                    return None, False
                if self._ready:
                    return self._ready.popleft(), True
                if self._waiting:
                    size = self._plan.payload_bytes(self._waiting[0])
                    room = len(self._announced) < limit and self._inflight_bytes + size <= self._options.max_inflight_bytes
                    if room or not self._announced:
                        index = self._waiting.popleft()
                        self._announced.add(index)
                        self._inflight_bytes += size
                        return index, False
                self._changed.wait()

    def _on_credit(self, index: int) -> None:
        with self._changed:
            if index not in self._announced or index in self._credited:
                raise BadReplyError(f"put: the server asked for block {index}, which is not due")
            self._credited.add(index)
            self._ready.append(index)
            self._changed.notify_all()

    def _on_ack(self, ack: Any) -> None:
        plan, index = self._plan, ack.index
        error = from_detail(ack.error) if ack.HasField("error") else None
        with self._changed:
            if index not in self._announced or (error is None and ack.content_hash != plan.hashes[index]):
                raise BadReplyError(f"put: the server acknowledged block {index}, which is not due")
            if isinstance(error, UnavailableError):
                self.transient = error
            else:
                self._results[index] = BlockResult(plan.hashes[index], plan.starts[index], plan.chunk_size(index), error, ack.have_it,
                                                   ack.stored_bytes, ack.raw_bytes, Quality.from_proto(ack.quality), ack.state == 2)
            self._announced.discard(index)
            if index in self._ready:
                self._ready.remove(index)
            self._inflight_bytes -= plan.payload_bytes(index)
            self._unsettled -= 1
            self._changed.notify_all()


def run_put(rpc: Rpc, plan: PutPlan, open_message: Any, options: ClientOptions) -> tuple[list[BlockResult], int]:
    """The whole put, over as many streams as the retry policy allows: results in order, payload bytes sent."""
    results: list[Optional[BlockResult]] = [None] * len(plan.hashes)
    retry = RetryState(options.retry)
    sent = 0
    while True:
        missing = results.count(None)
        attempt = PutAttempt(rpc, plan, open_message, options, results)
        error: Optional[LatticeKVError] = None
        try:
            attempt.run()
            error = attempt.transient
        except BadReplyError:
            raise
        except LatticeKVError as broken:
            error = broken
        sent += attempt.sent_bytes
        done = [result for result in results if result is not None]
        if len(done) == len(results):
            return done, sent
        if results.count(None) < missing:
            retry.reset()
        assert error is not None
        retry.wait(error)
