"""Errors as exceptions. Each carries the server's sentence, its reason, and the name of the limit that was passed, if one was."""
from __future__ import annotations

import enum
from typing import Any, Optional

import grpc

from latticekv._messages import message_class


class Reason(enum.IntEnum):
    """latticekv.v1.Reason."""

    UNSPECIFIED = 0
    NOT_STORED = 1
    OTHER_LAYOUT = 2
    UNKNOWN_LAYOUT = 3
    QUALITY_BELOW_BOUND = 4
    EVICTED_TOKENS = 5
    CORRUPT = 6
    PROFILE_MISSING = 7
    LIMIT = 8
    BAD_PAYLOAD = 9
    MEMORY_FULL = 10
    DRAINING = 11
    EXPIRED = 12
    DISK = 13


class LatticeKVError(Exception):
    """Base of all errors of this package."""

    def __init__(self, message: str, *, code: str = "UNKNOWN", reason: int = 0, limit: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code  # gRPC's name, "NOT_FOUND"
        self.reason: int = Reason(reason) if reason in Reason._value2member_map_ else reason
        self.limit = limit  # a name of docs/limits.md
        self.result: Any = None  # of a put: what became of the other blocks


class InvalidArgumentError(LatticeKVError):
    """The request does not make sense; it will not work later either."""


class NotStoredError(LatticeKVError):
    """No such block or session: never stored, deleted, expired or evicted."""


class OtherLayoutError(NotStoredError):
    """Stored, but under another layout."""


class QualityError(NotStoredError):
    """Stored with a larger error than the reader accepts."""


class EvictedTokensError(NotStoredError):
    """Stored with evicted tokens, which the reader did not accept."""


class UnknownLayoutError(LatticeKVError):
    """The layout is not registered; the daemon may have restarted."""


class ProfileMissingError(LatticeKVError):
    """A frame refers to a model profile that is not registered."""


class CorruptError(LatticeKVError):
    """The stored bytes were damaged and were dropped."""


class DiskError(LatticeKVError):
    """The daemon's disk takes no writes, so that a durable put has its block in memory only, or cannot be read just now."""


class LimitError(LatticeKVError):
    """A named limit was passed."""


class MemoryFullError(LimitError):
    """The daemon's memory cap leaves no room."""


class UnavailableError(LatticeKVError):
    """The daemon was not reached, went away, or is shutting down. The only error that calls are repeated for."""


class DeadlineError(LatticeKVError):
    """The daemon did not answer in time."""


class UnimplementedError(LatticeKVError):
    """The daemon does not do this."""


class BadReplyError(LatticeKVError):
    """The server broke the protocol; nothing of the reply was used."""


_BY_REASON: dict[int, tuple[type[LatticeKVError], str]] = {
    Reason.NOT_STORED: (NotStoredError, "NOT_FOUND"),
    Reason.EXPIRED: (NotStoredError, "NOT_FOUND"),
    Reason.OTHER_LAYOUT: (OtherLayoutError, "NOT_FOUND"),
    Reason.QUALITY_BELOW_BOUND: (QualityError, "NOT_FOUND"),
    Reason.EVICTED_TOKENS: (EvictedTokensError, "NOT_FOUND"),
    Reason.UNKNOWN_LAYOUT: (UnknownLayoutError, "FAILED_PRECONDITION"),
    Reason.PROFILE_MISSING: (ProfileMissingError, "FAILED_PRECONDITION"),
    Reason.CORRUPT: (CorruptError, "DATA_LOSS"),
    Reason.LIMIT: (LimitError, "RESOURCE_EXHAUSTED"),
    Reason.MEMORY_FULL: (MemoryFullError, "RESOURCE_EXHAUSTED"),
    Reason.BAD_PAYLOAD: (InvalidArgumentError, "INVALID_ARGUMENT"),
    Reason.DISK: (DiskError, "FAILED_PRECONDITION"),
    Reason.DRAINING: (UnavailableError, "UNAVAILABLE"),
}
_BY_CODE: dict[str, type[LatticeKVError]] = {
    "INVALID_ARGUMENT": InvalidArgumentError,
    "NOT_FOUND": NotStoredError,
    "RESOURCE_EXHAUSTED": LimitError,
    "DATA_LOSS": CorruptError,
    "UNAVAILABLE": UnavailableError,
    "DEADLINE_EXCEEDED": DeadlineError,
    "UNIMPLEMENTED": UnimplementedError,
}


def from_detail(detail: Any, code: str = "") -> LatticeKVError:
    """The exception for a latticekv.v1.ErrorDetail; `code` is gRPC's, where there is one."""
    kind, usual = _BY_REASON.get(detail.reason, (_BY_CODE.get(code, LatticeKVError), "UNKNOWN"))
    return kind(detail.message or f"reason {detail.reason}", code=code or usual, reason=detail.reason, limit=detail.limit)


def from_miss(reason: int, message: str) -> Optional[LatticeKVError]:
    """Why a look-up ended before its last token; None: it did not."""
    if reason == Reason.UNSPECIFIED:
        return None
    return from_detail(message_class("ErrorDetail")(reason=reason, message=message))


def from_rpc(error: grpc.RpcError) -> LatticeKVError:
    """The exception for a failed call, with the typed detail of its trailing metadata."""
    code: str = error.code().name
    trailing: Any = error.trailing_metadata() or ()
    for key, value in trailing:
        if key != "grpc-status-details-bin":
            continue
        try:
            status = message_class("RpcStatus").FromString(value)
            for packed in status.details:
                detail = message_class("ErrorDetail")()
                if packed.type_url.endswith("/latticekv.v1.ErrorDetail"):
                    detail.ParseFromString(packed.value)
                    if not detail.message:
                        detail.message = error.details() or ""
                    # A reason may travel under another code than its usual one: the code decides whether to repeat.
                    if code == "UNAVAILABLE":
                        return UnavailableError(detail.message, code=code, reason=detail.reason, limit=detail.limit)
                    return from_detail(detail, code)
        except Exception:  # noqa: BLE001 - a detail that does not parse leaves the plain error
            break
    return _BY_CODE.get(code, LatticeKVError)(error.details() or code, code=code)
