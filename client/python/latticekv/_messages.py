"""Messages of proto/latticekv/v1, made from the descriptor set that setup.py put beside this file."""
from __future__ import annotations

import os
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "latticekv.v1"


def _read() -> descriptor_pb2.FileDescriptorSet:
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "protocol.binpb"), "rb") as f:
        return descriptor_pb2.FileDescriptorSet.FromString(f.read())


_files = _read()
# A pool of its own: another package in this process may carry the same file names.
_pool = descriptor_pool.DescriptorPool()
for _file in _files.file:
    _pool.AddSerializedFile(_file.SerializeToString())


def message_class(name: str) -> Any:
    """The class of message `name` of the package."""
    descriptor = _pool.FindMessageTypeByName(f"{PACKAGE}.{name}")
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    factory: Any = message_factory.MessageFactory(_pool)  # before protobuf 4.22
    return factory.GetPrototype(descriptor)


# Method name -> (path, request class, response class, client streams, server streams).
METHODS: dict[str, tuple[str, Any, Any, bool, bool]] = {
    method.name: (f"/{PACKAGE}.{service.name}/{method.name}", message_class(method.input_type.rsplit(".", 1)[1]),
                  message_class(method.output_type.rsplit(".", 1)[1]), method.client_streaming, method.server_streaming)
    for file in _files.file if file.package == PACKAGE for service in file.service for method in service.method
}
