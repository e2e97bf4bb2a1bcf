#!/usr/bin/env python3
"""The vLLM connector driven through vLLM's own base class and scheduler output, with paged tensors and the real daemon, without the engine."""
import os
import subprocess
import sys
import time
import types
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import python_env  # noqa: E402

if __name__ == "__main__":
    python_env.enter("torch", [["numpy<2"]], base="/usr/bin/python3", needs_module="torch", hint="install python3-torch")
    found = subprocess.run([os.path.join(python_env.SOURCE_DIR, "deploy", "engines"), "vllm_base"], stdin=subprocess.DEVNULL,
                           capture_output=True, text=True)
    if found.returncode != 0:
        python_env.skip(f"vLLM's base class cannot be had: {found.stderr.strip()}")
    import vllm_base
    vllm_base.install(found.stdout.strip())

import torch  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole  # noqa: E402
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput  # noqa: E402

import latticekv as lkv  # noqa: E402
from daemon import DaemonTest  # noqa: E402
from latticekv.vllm_connector import LatticeKVConnector, keys_and_values, layout_of  # noqa: E402

SEED = int(os.environ.get("LATTICEKV_SEED", "0")) or time.time_ns() % (1 << 31)
LAYERS, HEADS, DIM, BLOCK, BLOCKS = 4, 2, 32, 16, 128


def config(server, preset="exact", **model):
    hf = types.SimpleNamespace(num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=HEADS, hidden_size=4 * DIM, rope_theta=10000.0)
    vars(hf).update(model)
    transfer = types.SimpleNamespace(is_kv_producer=True, get_from_extra_config=lambda key, default: {"server": server, "preset": preset,
                                                                                                     "namespace": preset}.get(key, default))
    return types.SimpleNamespace(model_config=types.SimpleNamespace(hf_config=hf, model="test", dtype=torch.float16, revision=None),
                                 parallel_config=types.SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1),
                                 cache_config=types.SimpleNamespace(block_size=BLOCK), kv_transfer_config=transfer)


def true_planes(layer, tokens, positions):
    """Keys and values as a model would compute them: the same for the same token at the same position."""
    generator = torch.Generator()
    out = []
    for token, position in zip(tokens, positions):
        generator.manual_seed(SEED + 1_000_003 * layer + 101 * int(token) + int(position))
        out.append(torch.randn(2, HEADS, DIM, generator=generator).half())
    stacked = torch.stack(out)
    return stacked[:, 0], stacked[:, 1]


class Engine:
    """Scheduler and worker as far as a connector sees them. paged: "token" or "planes", the shapes of keys_and_values."""

    def __init__(self, server, preset="exact", paged="token"):
        self.scheduler = LatticeKVConnector(config(server, preset), KVConnectorRole.SCHEDULER)
        self.worker = LatticeKVConnector(config(server, preset), KVConnectorRole.WORKER)
        shape = (BLOCKS, HEADS, BLOCK, 2 * DIM) if paged == "token" else (2, BLOCKS, BLOCK, HEADS, DIM)
        self.caches = {f"model.layers.{i}.self_attn": torch.zeros(shape, dtype=torch.float16) for i in range(LAYERS)}
        self.worker.register_kv_caches(self.caches)
        self.free = torch.randperm(BLOCKS, generator=torch.Generator().manual_seed(SEED)).tolist()
        self.layers_seen = 0

    def slots(self, block_ids, begin, end):
        positions = torch.arange(begin, end)
        return torch.tensor(block_ids)[positions // BLOCK], positions % BLOCK

    def cached(self, layer, block_ids, begin, end):
        block, offset = self.slots(block_ids, begin, end)
        plane = layout_of(config("unix:x")).layers[0].planes[0]
        return [cache[block, offset] for cache in keys_and_values(list(self.caches.values())[layer], plane)]

    def prefill(self, name, tokens, steps=1, on_matched=None, lora=None, local=0):
        """Runs the prompt, of which the engine has `local` tokens in blocks of its own (zeros here); returns (tokens that came from the connector,
        the request's blocks, blocks that failed to load)."""
        request = types.SimpleNamespace(request_id=name, prompt_token_ids=tokens, lora_request=lora)
        matched, later = self.scheduler.get_num_new_matched_tokens(request, local)
        assert not later
        if on_matched:
            on_matched()
        block_ids = [self.free.pop() for _ in range(-(-len(tokens) // BLOCK))]
        self.scheduler.update_state_after_alloc(request, None, matched)
        done = local + matched
        cuts = [done + (len(tokens) - done) * i // steps for i in range(steps + 1)]
        failed = set()
        for step, (begin, end) in enumerate(zip(cuts, cuts[1:])):
            held, needed = -(-begin // BLOCK) if step else 0, -(-end // BLOCK)
            new = [NewRequestData(name, tokens, [], None, None, (block_ids[:needed],), begin, lora)] if step == 0 else []
            cached = CachedRequestData.make_empty()
            if step:
                cached = CachedRequestData([name], set(), [], {}, [(block_ids[held:needed],) if needed > held else None], [begin], [0])
            output = SchedulerOutput(new, cached, {name: end - begin}, end - begin, {}, {}, set(), [])
            failed |= self.forward(self.scheduler.build_connector_meta(output), tokens, block_ids, begin, end)
        self.scheduler.request_finished(request, block_ids)
        return matched, block_ids, failed

    def forward(self, meta, tokens, block_ids, begin, end):
        self.worker.bind_connector_metadata(meta)
        self.worker.start_load_kv(types.SimpleNamespace())
        plane = layout_of(config("unix:x")).layers[0].planes[0]
        for layer, (name, cache) in enumerate(self.caches.items()):
            self.worker.wait_for_layer_load(name)
            block, offset = self.slots(block_ids, begin, end)
            for paged, computed in zip(keys_and_values(cache, plane), true_planes(layer, tokens[begin:end], range(begin, end))):
                paged[block, offset] = computed
            self.worker.save_kv_layer(name, cache, None)
        self.worker.wait_for_save()
        failed = self.worker.get_block_ids_with_load_errors()
        self.worker.clear_connector_metadata()
        return failed

    def close(self):
        self.worker.shutdown()
        self.scheduler.shutdown()


class VllmConnector(DaemonTest):
    def setUp(self):
        super().setUp()
        print(f"LATTICEKV_SEED={SEED}")
        self.tokens = torch.randint(0, 50_000, (700,), generator=torch.Generator().manual_seed(SEED)).tolist()

    def check(self, engine, tokens, block_ids, begin, end):
        for layer in range(LAYERS):
            for got, want in zip(engine.cached(layer, block_ids, begin, end), true_planes(layer, tokens[begin:end], range(begin, end))):
                self.assertTrue(torch.equal(got, want), f"layer {layer}")

    def test_it_is_a_connector(self):
        self.assertTrue(issubclass(LatticeKVConnector, KVConnectorBase_V1))
        self.assertFalse(LatticeKVConnector.__abstractmethods__)
        self.assertTrue(LatticeKVConnector.requires_piecewise_for_cudagraph({}))

    def test_a_stored_prefix_is_loaded_into_other_blocks_of_a_fresh_engine(self):
        for paged in ("token", "planes"):
            first = Engine(self.server, paged=paged)
            matched, _, failed = first.prefill("a", self.tokens[:500] if paged == "token" else self.tokens)
            self.assertEqual((matched > 0, failed), (paged == "planes", set()))
            first.close()
        engine = Engine(self.server)
        self.assertEqual(engine.prefill("other", [t + 1 for t in self.tokens])[0], 0)
        matched, block_ids, failed = engine.prefill("same", self.tokens)
        self.assertEqual((matched, failed), (688, set()))  # 699 in whole blocks of 16: the last token is always run
        self.check(engine, self.tokens, block_ids, 0, 700)
        branch = self.tokens[:333] + [7] * 50
        matched, block_ids, failed = engine.prefill("branch", branch)
        self.assertEqual((matched, failed), (320, set()))
        self.check(engine, branch, block_ids, 0, len(branch))
        engine.close()

    def test_blocks_of_other_requests_are_not_touched(self):
        first = Engine(self.server)
        first.prefill("a", self.tokens)
        first.close()
        engine = Engine(self.server)
        for cache in engine.caches.values():
            cache.fill_(3)
        _, block_ids, _ = engine.prefill("b", self.tokens)
        others = [b for b in range(BLOCKS) if b not in block_ids]
        for cache in engine.caches.values():
            self.assertTrue(bool((cache[others] == 3).all()))
        engine.close()

    def test_only_what_the_engine_lacks_is_loaded(self):
        first = Engine(self.server)
        first.prefill("a", self.tokens)
        first.close()
        engine = Engine(self.server)
        matched, block_ids, failed = engine.prefill("b", self.tokens, local=304)
        self.assertEqual((matched, failed), (688 - 304, set()))
        self.check(engine, self.tokens, block_ids, 304, 700)
        for layer in range(LAYERS):
            self.assertTrue(all(bool((plane == 0).all()) for plane in engine.cached(layer, block_ids, 0, 304)))
        engine.close()

    def test_a_prompt_in_several_steps_is_saved_once_whole(self):
        first = Engine(self.server)
        first.prefill("a", self.tokens, steps=3)
        first.close()
        self.assertEqual(int(self.daemon.stats()["puts"]), 3)  # chunks of 256, 256 and 188 tokens
        engine = Engine(self.server)
        matched, block_ids, _ = engine.prefill("b", self.tokens, steps=2)
        self.assertEqual(matched, 688)
        self.check(engine, self.tokens, block_ids, 0, 700)
        engine.close()

    def test_adapters_do_not_share(self):
        first = Engine(self.server)
        first.prefill("a", self.tokens, lora=types.SimpleNamespace(lora_name="x"))
        first.close()
        engine = Engine(self.server)
        self.assertEqual(engine.prefill("b", self.tokens)[0], 0)
        self.assertEqual(engine.prefill("c", self.tokens, lora=types.SimpleNamespace(lora_name="x"))[0], 688)
        engine.close()

    def test_high_is_close(self):
        first = Engine(self.server, "high")
        first.prefill("a", self.tokens)
        first.close()
        engine = Engine(self.server, "high")
        matched, block_ids, _ = engine.prefill("b", self.tokens)
        self.assertEqual(matched, 688)
        wanted = true_planes(2, self.tokens[:matched], range(matched))[1].float()
        error = engine.cached(2, block_ids, 0, matched)[1].float() - wanted
        relative = (error.pow(2).sum(-1) / wanted.pow(2).sum(-1)).mean().sqrt().item()
        self.assertGreater(relative, 0.1)
        self.assertLess(relative, 0.25)
        engine.close()

    def test_blocks_lost_after_the_look_up_are_reported_for_recomputation(self):
        first = Engine(self.server)
        first.prefill("a", self.tokens)
        first.close()
        engine = Engine(self.server)

        def lose():
            with lkv.connect(self.server) as client:
                layout = client.register_layout(layout_of(config(self.server)), namespace="exact")
                client.delete(namespace="exact", blocks=lkv.chain_hashes(layout.fingerprint, self.tokens, 256))

        matched, block_ids, failed = engine.prefill("b", self.tokens, on_matched=lose)
        self.assertEqual(matched, 688)
        self.assertEqual(failed, set(block_ids[: 688 // BLOCK]))
        engine.close()

    def test_a_dead_daemon_costs_nothing_but_the_prefill(self):
        engine = Engine("unix:" + self.path("nobody.sock"))
        start = time.monotonic()
        for i in range(5):
            self.assertEqual(engine.prefill(f"r{i}", self.tokens[:200])[::2], (0, set()))
        self.assertLess(time.monotonic() - start, 10)
        engine.close()

    def test_bfloat16_tensors_come_back_bit_for_bit(self):
        with lkv.connect(self.server) as client:
            layout = client.register_layout(lkv.Layout.uniform("bf16", layers=2, kv_heads=HEADS, head_dim=DIM, dtype=lkv.DType.BF16))
            # As attention keeps them, heads before tokens: a strided view goes in.
            planes = [[torch.randn(HEADS, 300, DIM).bfloat16().transpose(0, 1) for _ in range(2)] for _ in range(2)]
            client.put(layout, self.tokens[:300], planes, preset=lkv.Preset.EXACT)
            prefix = client.get(layout, tokens=torch.tensor(self.tokens[:300]), torch=True)
            for got, want in zip(prefix.planes, planes):
                for a, b in zip(got, want):
                    self.assertEqual(a.dtype, torch.bfloat16)
                    self.assertTrue(torch.equal(a, b))

    def test_what_it_does_not_support_is_refused_with_a_sentence(self):
        for model in ({"sliding_window": 4096}, {"kv_lora_rank": 512}):
            with self.assertRaisesRegex(ValueError, "supports full attention"):
                LatticeKVConnector(config(self.server, **model), KVConnectorRole.WORKER)
        parallel = config(self.server)
        parallel.parallel_config.tensor_parallel_size = 2
        with self.assertRaisesRegex(ValueError, "one worker"):
            LatticeKVConnector(parallel, KVConnectorRole.WORKER)
        connector = LatticeKVConnector(config(self.server), KVConnectorRole.WORKER)
        with self.assertRaisesRegex(ValueError, "shape"):
            connector.register_kv_caches({f"l{i}": torch.zeros(BLOCKS, BLOCK, 576) for i in range(LAYERS)})


if __name__ == "__main__":
    unittest.main()
