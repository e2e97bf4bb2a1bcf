"""The get: checks what the server streams and assembles it layer by layer."""
from __future__ import annotations

import dataclasses
from typing import Any, Iterator, Optional, Sequence

import google_crc32c
import numpy as np
import numpy.typing as npt

from latticekv._messages import message_class
from latticekv._rpc import Rpc, Watchdog, read_stream
from latticekv.blocks import BlockInfo, ClientOptions, QualityBounds
from latticekv.errors import BadReplyError, LatticeKVError, UnavailableError, from_detail
from latticekv.layout import RegisteredLayout, layer_offsets
from latticekv.retry import RetryState
from latticekv.tensors import as_torch, empty

ENCODING_RAW = 1


@dataclasses.dataclass
class _Block:
    info: BlockInfo
    start: int  # its first token's place in the arrays
    live: bool = True
    plane: int = 0  # of the current layer; the plane count when the layer is complete
    plane_offset: int = 0


class PrefixReader:
    """Blocks on their way. Iterate over it: (layer, [a tensor per plane]), each tensor [token_count, heads, head_dim].

    One layer is in memory at a time; while the caller works on it, the server may run ahead as far as flow control lets it. `blocks`,
    `tokens` and `token_count` are known before the first layer. A block that turns out damaged on the server ends the prefix before it: then
    `token_count` shrinks and `miss` is set while layers come, the tensors of later layers are shorter, and of earlier ones only the first
    `token_count` tokens count. When the connection breaks, the layers not yet delivered are asked for again.
    """

    def __init__(self, rpc: Rpc, layout: RegisteredLayout, hashes: Sequence[bytes], session: str, bounds: QualityBounds, accept_evicted: bool,
                 first_layer: int, layer_count: int, usable_tokens: Optional[int], torch: bool, options: ClientOptions) -> None:
        layers = len(layout.layout.layers)
        if not 0 <= first_layer < layers or not 0 <= layer_count <= layers - first_layer:
            raise ValueError(f"layers {first_layer} + {layer_count} are outside of the layout's {layers}")
        self._rpc, self._layout, self._options, self._torch = rpc, layout, options, torch
        self._offsets = layer_offsets(layout.layout)
        self._session, self._bounds, self._accept_evicted = session, bounds, accept_evicted
        self._hashes = list(hashes)
        self._next_layer = first_layer
        self._end_layer = first_layer + layer_count if layer_count else layers
        self._usable = usable_tokens
        self._retry = RetryState(options.retry)
        self._call: Any = None
        self._watchdog: Optional[Watchdog] = None
        self._blocks: list[_Block] = []
        self.blocks: list[BlockInfo] = []
        self.tokens: npt.NDArray[np.uint32] = np.empty(0, np.uint32)
        self.keep: Optional[npt.NDArray[np.bool_]] = None  # of all tokens of `blocks`; None: none was evicted
        self.token_count = 0
        self.miss: Optional[LatticeKVError] = None
        self._start_with_retries(first=True)

    def __enter__(self) -> PrefixReader:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the stream; layers not read yet will not come."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        if self._watchdog is not None:
            self._watchdog.close()
            self._watchdog = None

    def __iter__(self) -> Iterator[tuple[int, list[Any]]]:
        try:
            while self._next_layer < self._end_layer and self.token_count > 0:
                try:
                    arrays = self._read_layer()
                except UnavailableError as error:
                    self._retry.wait(error)
                    self._start_with_retries(first=False)
                    continue
                self._retry.reset()
                layer = self._next_layer
                self._next_layer += 1
                planes = self._layout.layout.layers[layer].planes
                yield layer, [as_torch(array[: self.token_count], plane) if self._torch else array[: self.token_count]
                              for array, plane in zip(arrays, planes)]
        finally:
            self.close()

    def _start_with_retries(self, first: bool) -> None:
        while True:
            try:
                self._start(first)
                return
            except UnavailableError as error:
                self.close()
                self._retry.wait(error)
            except BaseException:
                self.close()
                raise

    def _start(self, first: bool) -> None:
        """Begins a stream and reads what it says of its blocks."""
        self.close()
        if not first:  # layers that were delivered hold these blocks
            self._hashes = [info.content_hash for info in self.blocks]
        request = message_class("GetBlocksRequest")(
            namespace=self._layout.namespace, fingerprint=self._layout.fingerprint, encoding=ENCODING_RAW, bounds=self._bounds.to_proto(),
            accept_evicted=self._accept_evicted, first_layer=self._next_layer, layer_count=self._end_layer - self._next_layer)
        request.content_hashes.extend(self._hashes)
        if not self._hashes:
            request.session = self._session
        self._call = self._rpc.stream("GetBlocks", request)
        timeout_s = self._options.stream_idle_timeout_s
        self._watchdog = Watchdog(timeout_s, self._call.cancel)
        self._messages = read_stream(self._call, self._watchdog, timeout_s, "get")
        self._blocks, self._held, tokens = [], None, []
        masks: list[npt.NDArray[np.bool_]] = []
        infos: list[BlockInfo] = []
        miss: Optional[LatticeKVError] = None
        count = 0
        for message in self._messages:
            if message.WhichOneof("message") != "open":
                self._held = message
                break
            opened = message.open
            if opened.index != len(self._blocks):
                raise BadReplyError(f"get: the server sent block {opened.index} out of turn")
            info = BlockInfo.from_proto(opened.block)
            self._blocks.append(_Block(info, count, live=not opened.HasField("miss")))
            if opened.HasField("miss"):
                miss = miss or from_detail(opened.miss)
                continue
            if self._hashes and info.content_hash != self._hashes[opened.index]:
                raise BadReplyError(f"get: the server sent another block than asked for at index {opened.index}")
            if len(opened.token_ids) not in (0, info.tokens):
                raise BadReplyError(f"get: the server sent {len(opened.token_ids)} token ids for a block of {info.tokens}")
            if len(opened.keep) not in (0, info.tokens):
                raise BadReplyError(f"get: the server sent a mask of {len(opened.keep)} tokens for a block of {info.tokens}")
            if miss is None:
                infos.append(info)
                masks.append(np.frombuffer(opened.keep, np.uint8) != 0 if opened.keep else np.ones(info.tokens, np.bool_))
                tokens.extend(opened.token_ids)
                count += info.tokens
        if self._hashes and len(self._blocks) != len(self._hashes):
            raise BadReplyError(f"get: the server sent {len(self._blocks)} blocks of {len(self._hashes)}")
        self.blocks, self.miss = infos, miss or self.miss
        kept = np.concatenate(masks) if masks else np.empty(0, np.bool_)
        self.keep = None if kept.all() else kept
        self.token_count = count if self._usable is None else min(count, self._usable)
        self.tokens = np.array(tokens, np.uint32)[: self.token_count]

    def _next_message(self) -> Any:
        if self._held is not None:
            message, self._held = self._held, None
            return message
        message = next(self._messages, None)
        if message is None:
            raise BadReplyError(f"get: the server sent no more in layer {self._next_layer} of {self._end_layer}")
        return message

    def _read_layer(self) -> list[npt.NDArray[Any]]:
        """Everything of the next layer, of the blocks of the prefix."""
        planes = self._layout.layout.layers[self._next_layer].planes
        total = sum(info.tokens for info in self.blocks)
        arrays = [empty(plane, total) for plane in planes]
        flat = [array.reshape(-1).view(np.uint8) for array in arrays]
        for block in self._blocks:
            block.plane = block.plane_offset = 0
        while any(block.live and block.plane < len(planes) for block in self._blocks):
            message = self._next_message()
            kind = message.WhichOneof("message")
            if kind == "failed":
                self._on_failed(message.failed)
            elif kind == "part":
                self._on_part(message.part, planes, flat)
            elif kind == "open":
                raise BadReplyError(f"get: the server sent block {message.open.index} out of turn")
        return arrays

    def _on_part(self, part: Any, planes: Sequence[Any], flat: list[npt.NDArray[np.uint8]]) -> None:
        block = self._blocks[part.index] if part.index < len(self._blocks) else None
        if block is None or not block.live or part.layer != self._next_layer or part.plane != block.plane or part.plane >= len(planes):
            raise BadReplyError(f"get: the server sent layer {part.layer} plane {part.plane} of block {part.index} out of turn")
        tokens, row = block.info.tokens, planes[part.plane].token_bytes
        before = self._offsets[part.layer] + sum(plane.token_bytes for plane in planes[: part.plane])
        data = part.data
        if part.offset != before * tokens + block.plane_offset or not 0 < len(data) <= row * tokens - block.plane_offset:
            raise BadReplyError(f"get: the server sent {len(data)} bytes at offset {part.offset} of block {part.index}, which do not fit")
        if google_crc32c.value(data) != part.crc32c:
            raise BadReplyError(f"get: the server sent a part of block {part.index} with a wrong checksum")
        if part.index < len(self.blocks):
            at = block.start * row + block.plane_offset
            flat[part.plane][at: at + len(data)] = np.frombuffer(data, np.uint8)
        block.plane_offset += len(data)
        if block.plane_offset == row * tokens:
            block.plane, block.plane_offset = block.plane + 1, 0

    def _on_failed(self, failed: Any) -> None:
        if failed.index >= len(self._blocks) or not self._blocks[failed.index].live:
            raise BadReplyError(f"get: the server sent an error for block {failed.index}, which is not open")
        self._blocks[failed.index].live = False
        if failed.index < len(self.blocks):
            self.miss = from_detail(failed.miss)
            self.blocks = self.blocks[: failed.index]
            self.token_count = min(self.token_count, self._blocks[failed.index].start)
            self.tokens = self.tokens[: self.token_count]
