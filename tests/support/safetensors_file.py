"""Reads and writes safetensors files with the standard library alone."""
import json
import struct

BYTES = {"F16": 2, "BF16": 2, "F32": 4, "I32": 4, "U32": 4, "I64": 8, "U64": 8, "U8": 1, "BOOL": 1}


class Tensor:
    """One tensor: dtype as safetensors names it, shape, little-endian bytes."""

    def __init__(self, dtype, shape, data):
        self.dtype, self.shape, self.data = dtype, list(shape), bytes(data)

    def values(self):
        """All elements as Python numbers, in storage order."""
        code = {"F16": "e", "F32": "f", "I32": "i", "U32": "I", "I64": "q", "U64": "Q", "U8": "B", "BOOL": "B"}
        n = len(self.data) // BYTES[self.dtype]
        if self.dtype == "BF16":
            halves = struct.unpack(f"<{n}H", self.data)
            return struct.unpack(f"<{n}f", struct.pack(f"<{n}I", *(h << 16 for h in halves)))
        return struct.unpack(f"<{n}{code[self.dtype]}", self.data)


def read(path):
    """Returns ({name: Tensor}, metadata). Raises ValueError when the file is not whole."""
    with open(path, "rb") as f:
        blob = f.read()
    if len(blob) < 8:
        raise ValueError(f"{path}: too short for a safetensors file")
    (length,) = struct.unpack_from("<Q", blob)
    header = json.loads(blob[8: 8 + length])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        data = blob[8 + length + begin: 8 + length + end]
        count = BYTES[entry["dtype"]]
        for n in entry["shape"]:
            count *= n
        if len(data) != count:
            raise ValueError(f"{path}: tensor {name} has {len(data)} bytes, its shape needs {count}")
        tensors[name] = Tensor(entry["dtype"], entry["shape"], data)
    return tensors, metadata


def write(path, tensors, metadata=None):
    header, offset = {}, 0
    if metadata:
        header["__metadata__"] = metadata
    for name, t in tensors.items():
        header[name] = {"dtype": t.dtype, "shape": t.shape, "data_offsets": [offset, offset + len(t.data)]}
        offset += len(t.data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for t in tensors.values():
            f.write(t.data)
