"""Client of latticekvd, a service that offloads the KV cache of LLM inference.

    import latticekv as lkv

    with lkv.connect("unix:/run/latticekv/latticekv.sock") as client:
        layout = client.register_layout(lkv.Layout.uniform("my-model", layers=32, kv_heads=8, head_dim=128,
                                                           rope=lkv.Rope(lkv.RopeStyle.NEOX, 128, 500000.0)))
        client.put(layout, token_ids, [(k, v) for k, v in cache], preset=lkv.Preset.HIGH, session="chat-17")
        prefix = client.get(layout, tokens=token_ids)
"""
from latticekv._get import PrefixReader
from latticekv.blocks import (BlockInfo, BlockResult, ClientOptions, LookupBlock, LookupResult, Prefix, PutResult, Quality, QualityBounds,
                              SeedSettings, SessionSummary)
from latticekv.client import Client, connect
from latticekv.errors import (BadReplyError, CorruptError, DeadlineError, DiskError, EvictedTokensError, InvalidArgumentError, LatticeKVError, LimitError,
                              MemoryFullError, NotStoredError, OtherLayoutError, ProfileMissingError, QualityError, Reason, UnavailableError,
                              UnimplementedError, UnknownLayoutError)
from latticekv.keys import chain_hashes, chunk_hash
from latticekv.layout import DType, Layer, Layout, Plane, PlaneRole, Preset, RegisteredLayout, Rope, RopeScaling, RopeScalingKind, RopeStyle
from latticekv.profile import ModelProfile
from latticekv.retry import RetryPolicy

__version__ = "0.1.0"
__all__ = [
    "BadReplyError", "BlockInfo", "BlockResult", "Client", "ClientOptions", "CorruptError", "DType", "DeadlineError", "DiskError", "EvictedTokensError",
    "InvalidArgumentError", "LatticeKVError", "Layer", "Layout", "LimitError", "LookupBlock", "LookupResult", "MemoryFullError", "ModelProfile",
    "NotStoredError", "OtherLayoutError", "Plane", "PlaneRole", "Prefix", "PrefixReader", "Preset", "ProfileMissingError", "PutResult", "Quality",
    "QualityBounds", "QualityError", "Reason", "RegisteredLayout", "RetryPolicy", "Rope", "RopeScaling", "RopeScalingKind", "RopeStyle", "SeedSettings", "SessionSummary", "UnavailableError",
    "UnimplementedError", "UnknownLayoutError", "chain_hashes", "chunk_hash", "connect",
]
