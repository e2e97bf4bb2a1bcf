"""The channel: calls by name, and a watchdog for streams on which nothing moves."""
from __future__ import annotations

import threading
import time
from typing import Any, Callable, Iterator, Optional

import grpc

from latticekv._messages import METHODS
from latticekv.errors import InvalidArgumentError, UnavailableError, from_rpc

# A daemon's unary replies may be long listings; parts of streams are far smaller.
_MAX_REPLY_BYTES = 64 << 20
_OPTIONS = [
    ("grpc.max_receive_message_length", _MAX_REPLY_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.compression_enabled_algorithms_bitset", 1),
    # gRPC would wait a second before it connects again; meanwhile every retry fails at once.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


def _serialize(message: Any) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def check_address(address: str) -> None:
    if address.startswith("unix:"):
        if len(address) > len("unix:"):
            return
        raise InvalidArgumentError(f"address '{address}': the path is missing; use unix:PATH or HOST:PORT", code="INVALID_ARGUMENT")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise InvalidArgumentError(f"address '{address}': use unix:PATH or HOST:PORT", code="INVALID_ARGUMENT")


class Rpc:
    """One channel to a daemon. Thread-safe."""

    def __init__(self, address: str, credentials: Optional[grpc.ChannelCredentials], metadata: tuple[tuple[str, str], ...]) -> None:
        check_address(address)
        self._metadata = metadata
        self.channel = (grpc.insecure_channel(address, _OPTIONS) if credentials is None
                        else grpc.secure_channel(address, credentials, _OPTIONS))
        self._calls: dict[str, Any] = {}
        kinds = {(False, False): self.channel.unary_unary, (False, True): self.channel.unary_stream,
                 (True, True): self.channel.stream_stream}
        for name, (path, _, response, client_streams, server_streams) in METHODS.items():
            make = kinds[client_streams, server_streams]
            self._calls[name] = make(path, request_serializer=_serialize, response_deserializer=response.FromString)

    def unary(self, name: str, request: Any, timeout_s: float) -> Any:
        try:
            return self._calls[name](request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc(error) from None

    def stream(self, name: str, request: Any) -> Any:
        """The call of a streaming method: an iterator of responses with cancel()."""
        return self._calls[name](request, metadata=self._metadata)


class Watchdog:
    """Cancels a call from its own thread when, while armed, nothing was touched for `idle_timeout_s`."""

    def __init__(self, idle_timeout_s: float, cancel: Callable[[], Any]) -> None:
        self._timeout, self._cancel = idle_timeout_s, cancel
        self._changed = threading.Condition()
        self._last, self._armed, self._stop = time.monotonic(), True, False
        self.fired = False
        self._thread = threading.Thread(target=self._watch, name="latticekv-watchdog", daemon=True)
        self._thread.start()

    def touch(self) -> None:
        self._last = time.monotonic()

    def arm(self, armed: bool) -> None:
        self._last, self._armed = time.monotonic(), armed

    def close(self) -> None:
        with self._changed:
            self._stop = True
            self._changed.notify()
        self._thread.join()

    def _watch(self) -> None:
        with self._changed:
            while not self._stop:
                left = self._last + self._timeout - time.monotonic() if self._armed else self._timeout
                if left > 0:
                    self._changed.wait(left)
                    continue
                self.fired = True
                self._cancel()
                return


def read_stream(call: Any, watchdog: Watchdog, idle_timeout_s: float, what: str) -> Iterator[Any]:
    """Responses of `call`. Its end with an error is raised as one of ours; time of the consumer does not count as idle."""
    try:
        for message in call:
            watchdog.arm(False)
            yield message
            watchdog.arm(True)
    except grpc.RpcError as error:
        if watchdog.fired:
            raise UnavailableError(f"{what}: no word from the server for {idle_timeout_s:g} s", code="UNAVAILABLE") from None
        raise from_rpc(error) from None
