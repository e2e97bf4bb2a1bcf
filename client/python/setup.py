"""Adds the protocol to the wheel: the proto files as one serialized FileDescriptorSet.

A descriptor set instead of generated modules: any protoc makes it and every protobuf runtime reads it, while generated code is bound
to the runtime it was made for.
"""
import os
import shutil
import subprocess
import sys

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = os.path.dirname(os.path.abspath(__file__))
PROTO_DIR = os.environ.get("LATTICEKV_PROTO_DIR", os.path.join(HERE, "..", "..", "proto"))
ROOTS = ["latticekv/v1/cache_service.proto", "latticekv/v1/admin_service.proto"]


def protoc():
    found = shutil.which("protoc")
    if found:
        return [found]
    try:
        import grpc_tools.protoc  # noqa: F401
    except ImportError:
        sys.exit("latticekv: protoc is needed to build the package; install protobuf-compiler or grpcio-tools")
    return [sys.executable, "-m", "grpc_tools.protoc"]


class BuildWithProtocol(build_py):
    def run(self):
        super().run()
        if not os.path.isdir(PROTO_DIR):
            sys.exit(f"latticekv: {PROTO_DIR} is not there; build from the repository or set LATTICEKV_PROTO_DIR")
        package = HERE if getattr(self, "editable_mode", False) else self.build_lib
        target = os.path.join(package, "latticekv", "protocol.binpb")
        subprocess.run([*protoc(), f"--proto_path={PROTO_DIR}", "--include_imports", f"--descriptor_set_out={target}", *ROOTS], check=True)


setup(cmdclass={"build_py": BuildWithProtocol})
