"""vLLM's own connector base class and scheduler output, loaded from files of its wheel, without the engine.

What those files import beyond themselves, and only name in annotations or log lines, is replaced by empty stand-ins.
"""
import importlib.util
import logging
import os
import sys
import types

_REAL = {"vllm.v1.metrics.cache_hit_source": "v1/metrics/cache_hit_source.py", "vllm.v1.core.sched.output": "v1/core/sched/output.py",
         "vllm.distributed.kv_transfer.kv_connector.v1.base": "distributed/kv_transfer/kv_connector/v1/base.py"}
_STAND_INS = {"vllm.logger": {"init_logger": lambda name: _quiet(name)}, "vllm.v1.attention.backend": {"AttentionMetadata": object},
              "vllm.v1.outputs": {"KVConnectorOutput": object}, "vllm.config.ec_manager_config": {"EncoderCacheManagerMetadata": object},
              "vllm.multimodal.utils": {"strip_covered_mm_data": lambda features, *args, **kwargs: features}}


def _quiet(name):
    logger = logging.getLogger(name)
    logger.setLevel(logging.ERROR)  # the base class warns at every start that it may change
    return logger


def install(folder):
    """Makes the modules importable. folder: what `deploy/engines vllm_base` printed."""
    for name in [*_STAND_INS, *_REAL]:
        parts = name.split(".")
        for depth in range(1, len(parts)):
            parent = ".".join(parts[:depth])
            if parent not in sys.modules:
                sys.modules[parent] = types.ModuleType(parent)
                sys.modules[parent].__path__ = []
    for name, members in _STAND_INS.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(members)
    for name, path in _REAL.items():
        spec = importlib.util.spec_from_file_location(name, os.path.join(folder, "vllm", path))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
