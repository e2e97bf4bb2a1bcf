"""A vLLM v1 KV connector: prompts whose prefix is stored on a LatticeKV daemon are not prefilled again.

    vllm serve MODEL --kv-transfer-config '{"kv_connector": "LatticeKVConnector", "kv_role": "kv_both",
        "kv_connector_module_path": "latticekv.vllm_connector",
        "kv_connector_extra_config": {"server": "unix:/run/latticekv/latticekv.sock", "preset": "high"}}'

The daemon is a cache: whatever goes wrong with it costs a prefill, never a request. See docs/engines/vllm.md.
"""
from __future__ import annotations

import dataclasses
import logging
import queue
import threading
import time
from typing import Any, Optional

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata, KVConnectorRole

import latticekv as lkv

_DTYPES = {torch.float16: lkv.DType.F16, torch.bfloat16: lkv.DType.BF16, torch.float32: lkv.DType.F32}
_CLIENT_OPTIONS = lkv.ClientOptions(rpc_timeout_s=2.0, stream_idle_timeout_s=10.0, retry=lkv.RetryPolicy(max_errors=0))
_PAUSE_S = 5.0  # after the daemon was not reached, it is not asked again for so long
_LOAD_TIMEOUT_S = 60.0
_MAX_PENDING_SAVE_BYTES = 1 << 30  # copies waiting to be sent; saves beyond are dropped

logger = logging.getLogger("latticekv.vllm")


def layout_of(vllm_config: Any) -> lkv.Layout:
    """The layout that scheduler and worker agree on. ValueError for what this connector does not support."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    if parallel.tensor_parallel_size != 1 or parallel.pipeline_parallel_size != 1:
        raise ValueError("LatticeKVConnector supports one worker, without tensor or pipeline parallelism")
    config = getattr(model, "hf_text_config", None) or model.hf_config
    if getattr(config, "kv_lora_rank", None) or getattr(config, "sliding_window", None):
        raise ValueError("LatticeKVConnector supports full attention with keys and values of every layer, not latent or sliding-window attention")
    if model.dtype not in _DTYPES:
        raise ValueError(f"LatticeKVConnector supports caches of float16, bfloat16 and float32, not {model.dtype}")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return lkv.Layout.uniform(model.model, layers=config.num_hidden_layers, kv_heads=getattr(config, "num_key_value_heads", config.num_attention_heads),
                              head_dim=head_dim, dtype=_DTYPES[model.dtype], rope=lkv.Rope.of_config(config, head_dim), revision=getattr(model, "revision", None) or "")


def keys_and_values(cache: torch.Tensor, plane: lkv.Plane) -> tuple[torch.Tensor, torch.Tensor]:
    """Views [blocks, tokens of a block, heads, head_dim] of a layer's paged cache: [blocks, heads, tokens, 2 * head_dim] with a token's key before its
    value, or [2, blocks, tokens, heads, head_dim] of earlier releases. ValueError for other shapes."""
    heads, dim = plane.heads, plane.head_dim
    if cache.dim() == 4 and cache.shape[1] == heads and cache.shape[3] == 2 * dim:
        by_token = cache.transpose(1, 2)
        return by_token[..., :dim], by_token[..., dim:]
    if cache.dim() == 5 and cache.shape[0] == 2 and tuple(cache.shape[3:]) == (heads, dim):
        return cache[0], cache[1]
    raise ValueError(f"LatticeKVConnector does not know paged caches of shape {tuple(cache.shape)} for {heads} heads of {dim}")


@dataclasses.dataclass
class Transfer:
    """Tokens [start, end) of a request, to be loaded into its blocks or saved from them."""

    request_id: str
    tokens: list[int]  # from position 0 to `end`
    block_ids: list[int]  # of the request, from position 0
    start: int
    end: int
    salt: str


@dataclasses.dataclass
class LatticeKVMetadata(KVConnectorMetadata):  # type: ignore[misc]
    loads: list[Transfer] = dataclasses.field(default_factory=list)
    saves: list[Transfer] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class _Tracked:
    """A request as the scheduler's side knows it."""

    tokens: list[int]
    block_ids: list[int]
    salt: str
    stored: int = 0  # leading tokens that came from the daemon
    saved: bool = False


def _salt(request: Any) -> str:
    """What makes equal token ids mean different keys: an adapter, images, the request's own salt."""
    parts = []
    adapter = getattr(request, "lora_request", None)
    if adapter is not None:
        parts.append(f"lora:{adapter.lora_name}")
    parts += [f"mm:{feature.identifier}" for feature in getattr(request, "mm_features", None) or ()]
    if getattr(request, "cache_salt", None):
        parts.append(f"salt:{request.cache_salt}")
    return "|".join(parts)


class LatticeKVConnector(KVConnectorBase_V1):  # type: ignore[misc]
    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any = None) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        extra = self._kv_transfer_config.get_from_extra_config
        self._layout = layout_of(vllm_config)
        self._namespace = extra("namespace", "vllm")
        self._preset = lkv.Preset[extra("preset", "high").upper()]
        self._client = lkv.connect(extra("server", "unix:/run/latticekvd.sock"), _CLIENT_OPTIONS)
        self._block_size = vllm_config.cache_config.block_size
        self._registered: Optional[lkv.RegisteredLayout] = None
        self._paused_until = 0.0
        # Scheduler's side.
        self._to_load: dict[str, int] = {}
        self._tracked: dict[str, _Tracked] = {}
        self._salts: dict[str, str] = {}
        # Worker's side.
        self._caches: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._layer_numbers: dict[str, int] = {}
        self._loaded: list[threading.Event] = []
        self._failed_blocks: set[int] = set()
        self._gathered: dict[str, list[Any]] = {}
        self._pending_bytes = 0
        self._pending_lock = threading.Lock()
        self._saves: queue.Queue[Any] = queue.Queue()
        self._saver: Optional[threading.Thread] = None

    # Both sides.

    def _ready(self) -> Optional[lkv.RegisteredLayout]:
        """The layout as the daemon knows it; None while the daemon is left alone."""
        if time.monotonic() < self._paused_until:
            return None
        if self._registered is None:
            try:
                self._registered = self._client.register_layout(self._layout, namespace=self._namespace)
            except lkv.LatticeKVError as error:
                self._pause(error)
        return self._registered

    def _pause(self, error: Exception) -> None:
        if isinstance(error, lkv.NotStoredError):
            return
        logger.warning("LatticeKV: %s; going on without for %g s", error, _PAUSE_S)
        self._paused_until = time.monotonic() + _PAUSE_S

    # Scheduler's side.

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        layout, ids = self._ready(), list(request.prompt_token_ids or ())
        self._salts[request.request_id] = _salt(request)
        if layout is None or not ids:
            return 0, False
        try:
            found = self._client.lookup(layout, ids, salt=self._salts[request.request_id])
        except lkv.LatticeKVError as error:
            self._pause(error)
            return 0, False
        # The last token is always run, for its logits; vLLM counts in whole blocks.
        usable = min(found.usable_tokens, len(ids) - 1) // self._block_size * self._block_size
        return max(usable - num_computed_tokens, 0), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if num_external_tokens > 0:
            self._to_load[request.request_id] = num_external_tokens

    def build_connector_meta(self, scheduler_output: Any) -> LatticeKVMetadata:
        meta = LatticeKVMetadata()
        for new in scheduler_output.scheduled_new_reqs:
            tracked = _Tracked(list(new.prompt_token_ids or ()), list(new.block_ids[0]), self._salts.get(new.req_id, ""))
            self._tracked[new.req_id] = tracked
            self._plan(meta, new.req_id, tracked, new.num_computed_tokens, scheduler_output)
        cached = scheduler_output.scheduled_cached_reqs
        for i, request_id in enumerate(cached.req_ids):
            known = self._tracked.get(request_id)
            if known is None:
                continue
            if cached.new_block_ids[i] is not None:
                added = list(cached.new_block_ids[i][0])
                known.block_ids = added if request_id in cached.resumed_req_ids else known.block_ids + added
            self._plan(meta, request_id, known, cached.num_computed_tokens[i], scheduler_output)
        self._to_load.clear()
        return meta

    def _plan(self, meta: LatticeKVMetadata, request_id: str, tracked: _Tracked, computed: int, scheduler_output: Any) -> None:
        external = self._to_load.pop(request_id, 0)
        if external:  # they count as computed already
            tracked.stored = computed
            meta.loads.append(Transfer(request_id, tracked.tokens[:computed], list(tracked.block_ids), computed - external, computed, tracked.salt))
        # Saved once, in the step that ends the prompt: then all of its keys and values are in the blocks.
        if not tracked.saved and computed + scheduler_output.num_scheduled_tokens[request_id] >= len(tracked.tokens) > 0:
            tracked.saved = True
            chunk = self._registered.chunk_tokens if self._registered is not None else 1
            start = tracked.stored // chunk * chunk  # whole chunks that the daemon has are not copied again
            meta.saves.append(Transfer(request_id, tracked.tokens, list(tracked.block_ids), start, len(tracked.tokens), tracked.salt))

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, Optional[dict[str, Any]]]:
        self._tracked.pop(request.request_id, None)
        self._salts.pop(request.request_id, None)
        return False, None

    # Worker's side.

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        layers = self._layout.layers
        if len(kv_caches) != len(layers):
            raise ValueError(f"LatticeKVConnector: the engine has {len(kv_caches)} cache layers, the model {len(layers)}")
        self._layer_numbers = {name: i for i, name in enumerate(kv_caches)}
        self._caches = {name: keys_and_values(cache, layers[0].planes[0]) for name, cache in kv_caches.items()}

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Loads in a thread of its own, layer by layer: the model runs layer l while l + 1 is on its way."""
        loads = self._get_connector_metadata().loads
        self._loaded = []
        if not loads:
            return
        self._loaded = [threading.Event() for _ in self._layer_numbers]
        threading.Thread(target=self._load_all, args=(list(loads), self._loaded), name="latticekv-load", daemon=True).start()

    def _load_all(self, loads: list[Transfer], loaded: list[threading.Event]) -> None:
        """All loads advance together, a layer at a time, so that a layer is complete for the whole batch."""
        readers: list[tuple[Transfer, Any, Any]] = []
        try:
            for load in loads:
                reader = self._open(load)
                if reader is not None:
                    readers.append((load, reader, iter(reader)))
            for number, name in enumerate(self._layer_numbers):
                for entry in list(readers):
                    if not self._load_layer(*entry, name):
                        readers.remove(entry)
                loaded[number].set()
        finally:
            for _, reader, _ in readers:
                reader.close()
            for event in loaded:
                event.set()

    def _open(self, load: Transfer) -> Any:
        layout = self._ready()
        try:
            if layout is None:
                raise lkv.UnavailableError("the daemon was not reached a moment ago")
            reader = self._client.stream(layout, tokens=load.tokens, salt=load.salt, torch=True)
            if reader.token_count >= load.end:
                return reader
            reader.close()
            raise lkv.NotStoredError("a block was evicted after it was looked up")
        except lkv.LatticeKVError as error:
            self._fail(load, error)
            return None

    def _load_layer(self, load: Transfer, reader: Any, layers: Any, name: str) -> bool:
        try:
            _, (keys, values) = next(layers)
            if reader.token_count < load.end:
                raise lkv.CorruptError("a block turned out damaged")
        except (lkv.LatticeKVError, StopIteration) as error:
            reader.close()
            self._fail(load, error)
            return False
        for cache, plane in zip(self._caches[name], (keys, values)):
            block, offset = self._slots(load, cache.device)
            cache[block, offset] = plane[load.start: load.end].to(cache.device)
        return True

    def _fail(self, load: Transfer, error: Exception) -> None:
        """vLLM computes what these blocks should have held."""
        self._pause(error)
        self._failed_blocks.update(load.block_ids[load.start // self._block_size: -(-load.end // self._block_size)])

    def _slots(self, transfer: Transfer, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
        positions = torch.arange(transfer.start, transfer.end)
        blocks = torch.tensor(transfer.block_ids)[positions // self._block_size]
        return blocks.to(device), (positions % self._block_size).to(device)

    def wait_for_layer_load(self, layer_name: str) -> None:
        number = self._layer_numbers.get(layer_name, len(self._loaded))
        if number < len(self._loaded) and not self._loaded[number].wait(_LOAD_TIMEOUT_S):
            raise TimeoutError(f"LatticeKV: layer {layer_name} was not loaded within {_LOAD_TIMEOUT_S:g} s")

    def get_block_ids_with_load_errors(self) -> set[int]:
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Copies the layer's tokens out of their blocks, which may be reused as soon as the step is over."""
        planes = self._layout.layers[0].planes
        for save in self._get_connector_metadata().saves:
            layers = self._gathered.get(save.request_id)
            if layers is None:
                size = self._layout.token_bytes * (save.end - save.start)
                with self._pending_lock:
                    room = self._pending_bytes + size <= _MAX_PENDING_SAVE_BYTES
                    self._pending_bytes += size if room else 0
                if not room or self._ready() is None:
                    if room:
                        self._release(size)
                    continue
                layers = self._gathered[save.request_id] = [None] * len(self._layer_numbers)
            layers[self._layer_numbers[layer_name]] = tuple(
                cache[self._slots(save, cache.device)].detach().cpu() for cache in keys_and_values(kv_layer, planes[0]))

    def wait_for_save(self) -> None:
        """Hands complete copies to a thread that sends them; the step does not wait for the daemon."""
        for save in self._get_connector_metadata().saves:
            layers = self._gathered.pop(save.request_id, None)
            if layers is None:
                continue
            if any(layer is None for layer in layers):
                self._release(self._layout.token_bytes * (save.end - save.start))
                continue
            if self._saver is None:
                self._saver = threading.Thread(target=self._save_all, name="latticekv-save", daemon=True)
                self._saver.start()
            self._saves.put((save, layers))

    def _save_all(self) -> None:
        while True:
            job = self._saves.get()
            if job is None:
                return
            save, layers = job
            layout = self._ready()
            try:
                if layout is not None:
                    self._client.put(layout, save.tokens, layers, preset=self._preset, start=save.start, salt=save.salt)
            except lkv.LatticeKVError as error:
                self._pause(error)
            finally:
                self._release(self._layout.token_bytes * (save.end - save.start))

    def _release(self, size: int) -> None:
        with self._pending_lock:
            self._pending_bytes -= size

    def shutdown(self) -> None:
        """Sends what was saved, then ends."""
        if self._saver is not None:
            self._saves.put(None)
            self._saver.join(_LOAD_TIMEOUT_S)
            self._saver = None
        self._client.close()

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        return True
