"""numpy arrays and torch tensors as the bytes of planes, and back. torch is imported only where a caller uses it.

A plane of some tokens is [tokens, heads, head_dim] with any strides. bfloat16, which numpy lacks, is uint16 there.
"""
from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from latticekv.layout import DType, Plane

_NUMPY: dict[DType, np.dtype[Any]] = {DType.F16: np.dtype("<f2"), DType.BF16: np.dtype("<u2"), DType.F32: np.dtype("<f4")}
_TORCH = {DType.F16: "torch.float16", DType.BF16: "torch.bfloat16", DType.F32: "torch.float32"}


def is_torch(tensor: Any) -> bool:
    return type(tensor).__module__.split(".")[0] == "torch"


def check_plane(tensor: Any, plane: Plane, where: str, tokens: int) -> None:
    """ValueError unless `tensor` is `tokens` tokens of `plane`."""
    shape = tuple(tensor.shape)
    if shape != (tokens, plane.heads, plane.head_dim):
        raise ValueError(f"{where} has shape {shape}, the layout needs {(tokens, plane.heads, plane.head_dim)}")
    name = str(tensor.dtype)
    if is_torch(tensor):
        good = name == _TORCH[plane.dtype]
    else:
        good = tensor.dtype == _NUMPY[plane.dtype] or (plane.dtype is DType.BF16 and name == "bfloat16")
    if not good:
        raise ValueError(f"{where} is {name}, the layout says {plane.dtype.name}")


def rows(tensor: Any, begin: int, end: int) -> memoryview:
    """Tokens [begin, end) as contiguous little-endian bytes; copies only what is strided or on a device."""
    part = tensor[begin:end]
    if is_torch(part):
        import torch
        part = part.detach().cpu().contiguous()
        if part.dtype is torch.bfloat16:
            part = part.view(torch.int16)
        part = part.numpy()
    flat: Any = np.ascontiguousarray(part).view(np.uint8).reshape(-1)
    return memoryview(flat)


def empty(plane: Plane, tokens: int) -> npt.NDArray[Any]:
    return np.empty((tokens, plane.heads, plane.head_dim), _NUMPY[plane.dtype])


def as_torch(array: npt.NDArray[Any], plane: Plane) -> Any:
    """A torch tensor that shares the array's memory."""
    import torch
    if plane.dtype is DType.BF16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
