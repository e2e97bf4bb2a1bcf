"""Content hashes of chunks (docs/format/keys.md)."""
from __future__ import annotations

import hashlib
import struct
from typing import Optional

import numpy as np
import numpy.typing as npt

_VERSION = 1
_TAG_VERSION, _TAG_FINGERPRINT, _TAG_PARENT, _TAG_TOKENS, _TAG_SALT, _TAG_KEEP = 1, 2, 3, 4, 5, 9


def token_array(tokens: object) -> npt.NDArray[np.uint32]:
    """Token ids (a sequence, numpy array or torch tensor) as uint32."""
    if hasattr(tokens, "detach"):
        tokens = tokens.detach().cpu().numpy()
    array = np.asarray(tokens)
    if array.ndim != 1:
        raise ValueError(f"token ids must be one sequence, not an array of shape {array.shape}")
    if array.size and (array.dtype.kind not in "iu" or int(array.min()) < 0 or int(array.max()) >= 1 << 32):
        raise ValueError("token ids must be integers from 0 to 2^32 - 1")
    return np.ascontiguousarray(array, dtype="<u4")


def keep_array(keep: object, tokens: int) -> Optional[npt.NDArray[np.uint8]]:
    """A mask of kept tokens (a sequence, numpy array or torch tensor; true: kept) as 0 and 1; None when it keeps all."""
    if keep is None:
        return None
    if hasattr(keep, "detach"):
        keep = keep.detach().cpu().numpy()
    array = np.asarray(keep)
    if array.shape != (tokens,):
        raise ValueError(f"keep has shape {array.shape}; it needs one entry for each of the {tokens} tokens")
    array = (array != 0).astype(np.uint8)
    return None if array.all() else array


def chunk_hash(fingerprint: bytes, parent: Optional[bytes], tokens: object, salt: str = "", keep: object = None) -> bytes:
    """The content hash of one chunk; `parent` is the hash of the chunk before it, None for the first. `keep`: as for Client.put."""
    ids = token_array(tokens)
    fields = [(_TAG_VERSION, struct.pack("<I", _VERSION)), (_TAG_FINGERPRINT, fingerprint), (_TAG_PARENT, parent or b""),
              (_TAG_TOKENS, struct.pack("<I", len(ids)) + ids.tobytes()), (_TAG_SALT, salt.encode())]
    mask = keep_array(keep, len(ids))
    if mask is not None:
        fields.append((_TAG_KEEP, hashlib.sha256(mask.tobytes()).digest()))
    digest = hashlib.sha256()
    for tag, field in fields:
        digest.update(struct.pack("<IQ", tag, len(field)))
        digest.update(field)
    return digest.digest()


def chain_hashes(fingerprint: bytes, tokens: object, chunk_tokens: int, salt: str = "", keep: object = None) -> list[bytes]:
    """The content hash of every chunk of a sequence, in order; the last chunk may be shorter."""
    ids = token_array(tokens)
    mask = keep_array(keep, len(ids))
    out: list[bytes] = []
    for at in range(0, len(ids), chunk_tokens):
        kept = None if mask is None else mask[at: at + chunk_tokens]
        out.append(chunk_hash(fingerprint, out[-1] if out else None, ids[at: at + chunk_tokens], salt, kept))
    return out
