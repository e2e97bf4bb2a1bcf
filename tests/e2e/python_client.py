#!/usr/bin/env python3
"""The Python package against the real daemon, and against one that lies."""
import os
import sys
import time
import types
import unittest
from concurrent import futures

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import python_env  # noqa: E402

if __name__ == "__main__":
    python_env.enter("client")

import grpc  # noqa: E402
import numpy as np  # noqa: E402

import latticekv as lkv  # noqa: E402
import safetensors_file  # noqa: E402
from compare_cache import CONTRACT_SLACK  # noqa: E402
from cutting_proxy import CuttingProxy  # noqa: E402
from daemon import PROFILE, SAMPLE, Daemon, DaemonTest, cli  # noqa: E402
from latticekv._messages import METHODS, message_class  # noqa: E402
from latticekv._put import mass_levels  # noqa: E402
from latticekv.errors import from_detail  # noqa: E402

SEED = int(os.environ.get("LATTICEKV_SEED", "0")) or time.time_ns() % (1 << 32)
FAST_RETRY = lkv.RetryPolicy(max_errors=3, initial_backoff_s=0.01, max_backoff_s=0.05)


def load(path):
    tensors, metadata = safetensors_file.read(path)
    kinds = {"F16": "<f2", "F32": "<f4", "I32": "<i4"}
    return {name: np.frombuffer(t.data, kinds[t.dtype]).reshape(t.shape) for name, t in tensors.items()}, metadata


def sample_layout(metadata, k):
    return lkv.Layout.uniform(metadata["model"], layers=k.shape[0], kv_heads=k.shape[2], head_dim=k.shape[3],
                              rope=lkv.Rope(lkv.RopeStyle.NEOX, k.shape[3], float(metadata["rope_base"])))


def random_planes(rng, layout, tokens):
    kinds = {lkv.DType.F16: np.float16, lkv.DType.F32: np.float32}
    out = []
    for layer in layout.layers:
        planes = []
        for p in layer.planes:
            x = rng.standard_normal((tokens, p.heads, p.head_dim), np.float32)
            planes.append((x.view(np.uint32) >> 16).astype(np.uint16) if p.dtype is lkv.DType.BF16 else x.astype(kinds[p.dtype]))
        out.append(planes)
    return out


class PythonClient(DaemonTest):
    memory_bytes = 512 << 20

    def setUp(self):
        super().setUp()
        print(f"LATTICEKV_SEED={SEED}")
        self.rng = np.random.default_rng(SEED)
        self.client = self.connect(self.server)
        self.layout = lkv.Layout.uniform("test", layers=3, kv_heads=2, head_dim=16, rope=lkv.Rope(lkv.RopeStyle.INTERLEAVED, 16))
        self.tokens = self.rng.integers(0, 1 << 32, 600, np.uint32)
        self.planes = random_planes(self.rng, self.layout, 600)

    def connect(self, address, **options):
        client = lkv.connect(address, lkv.ClientOptions(**options))
        self.addCleanup(client.close)
        return client

    def assertPlanes(self, prefix, planes, count, first_layer=0):
        self.assertEqual(prefix.token_count, count)
        for got, want in zip(prefix.planes, planes[first_layer:]):
            for a, b in zip(got, want):
                np.testing.assert_array_equal(a.view(np.uint8), np.ascontiguousarray(b[:count]).view(np.uint8))

    def test_levels_of_attention_mass_are_those_of_the_tokens_that_stay(self):
        # What each query gave: 8, but 128 to the first four tokens and 1 to every second of the others.
        per_query = np.where(np.arange(40) < 4, 128, np.where(np.arange(40) % 2, 1, 8))
        mass = (per_query * (40 - np.arange(40) + 32)).astype(np.float32)[None]
        self.assertAlmostEqual(mass_levels(mass, 40, 0, None)[0], 1.5, places=5)
        self.assertAlmostEqual(mass_levels(mass[:, 16:], 24, 16, None)[0], 1.5, places=5)
        self.assertAlmostEqual(mass_levels(mass, 40, 0, np.arange(40) % 2 == 0)[0], 3, places=5)
        self.assertEqual(mass_levels(mass[:, :3], 3, 0, None), [0])

    def test_mass_eviction_and_seed_settings(self):
        layout = self.client.register_layout(self.layout, chunk_tokens=256)
        keep = self.rng.random(600) < 0.6
        keep[::200] = True
        keep[1] = False
        mass = self.rng.random((3, 600), np.float32)
        self.client.put(layout, self.tokens, self.planes, preset=lkv.Preset.SMALL, session="e", keep=keep, attention_mass=mass)
        with self.assertRaises(lkv.EvictedTokensError):
            self.client.get(layout, tokens=self.tokens)
        with self.assertRaises(lkv.EvictedTokensError):
            self.client.get(layout, session="e")
        self.assertIsInstance(self.client.lookup(layout, self.tokens).miss, lkv.EvictedTokensError)
        prefix = self.client.get(layout, tokens=self.tokens, accept_evicted=True)
        self.assertEqual(prefix.token_count, 600)
        np.testing.assert_array_equal(prefix.keep, keep)
        self.assertEqual(sum(block.evicted_tokens for block in prefix.blocks), np.count_nonzero(~keep))
        for layer, given in zip(prefix.planes, self.planes):
            for plane, original in zip(layer, given):
                self.assertFalse(plane[~keep].any())
                error = np.linalg.norm(plane[keep].astype(np.float64) - original[keep]) / np.linalg.norm(original[keep].astype(np.float64))
                self.assertLess(error, 0.8)
        np.testing.assert_array_equal(self.client.get(layout, session="e", accept_evicted=True).keep, keep)
        with self.assertRaises(ValueError):
            self.client.put(layout, self.tokens, self.planes, keep=keep[1:])
        with self.assertRaises(ValueError):
            self.client.put(layout, self.tokens, self.planes, attention_mass=mass[:, 1:])
        whole = self.client.put(layout, self.tokens, self.planes, preset=lkv.Preset.SEED, seed=lkv.SeedSettings(2, 2))
        finer = self.client.put(layout, self.tokens, self.planes, preset=lkv.Preset.SEED, seed=lkv.SeedSettings(5, 5))
        self.assertFalse(any(block.have_it for block in finer.blocks))
        self.assertGreater(finer.stored_bytes, whole.stored_bytes * 1.3)
        self.assertIsNone(self.client.get(layout, tokens=self.tokens).keep)

    def test_a_real_cache_bit_for_bit_over_both_transports(self):
        cache, metadata = load(SAMPLE)
        ids = cache["token_ids"][: cache["k"].shape[1]]
        planes = list(zip(cache["k"], cache["v"]))
        layout = self.client.register_layout(sample_layout(metadata, cache["k"]))
        result = self.client.put(layout, ids, planes, preset=lkv.Preset.EXACT, session="real")
        self.assertEqual(result.sent_bytes, result.raw_bytes)
        self.assertLess(result.stored_bytes, result.raw_bytes)
        for address in (self.daemon.socket, self.daemon.tcp):
            prefix = self.connect(address).get(layout, tokens=ids)
            self.assertPlanes(prefix, planes, len(ids))
            np.testing.assert_array_equal(prefix.tokens, ids)
        self.assertTrue(prefix.blocks[0].quality.exact)
        # The command line finds the same session under the same layout, so names and layouts agree.
        cli("get", "--server", self.server, "--session", "real", self.path("out"))
        np.testing.assert_array_equal(load(self.path("out"))[0]["k"], cache["k"])

    def test_a_profile_is_the_one_the_command_line_makes(self):
        cache, metadata = load(SAMPLE)
        profile = {name: value for name, value in load(PROFILE)[0].items()}
        layout = sample_layout(metadata, cache["k"])
        registered = self.client.register_layout(layout, profile=lkv.ModelProfile(**profile))
        self.assertEqual(len(registered.profile_hash), 32)
        ids = cache["token_ids"][: cache["k"].shape[1]]
        result = self.client.put(registered, ids, list(zip(cache["k"], cache["v"])), preset=lkv.Preset.BALANCED)
        quality = result.blocks[0].quality
        self.assertTrue(quality.profiled)
        self.assertLess(quality.logit_noise, 0.28 * CONTRACT_SLACK)
        self.assertLess(quality.value_error, 0.32 * CONTRACT_SLACK)
        self.assertLess(result.stored_bytes, result.raw_bytes / 5)
        served = self.client.get(registered, tokens=ids)
        cli("compress", SAMPLE, self.path("a.lkv"), "--preset", "balanced", "--profile", PROFILE, "--stats", "auto")
        cli("decompress", self.path("a.lkv"), self.path("local"), "--profile", PROFILE)
        local = load(self.path("local"))[0]
        self.assertPlanes(served, list(zip(local["k"], local["v"])), len(ids))

    def test_prefixes_tails_and_what_is_sent_again(self):
        layout = self.client.register_layout(self.layout)
        self.client.put(layout, self.tokens[:300], [[p[:300] for p in planes] for planes in self.planes], preset=lkv.Preset.EXACT)
        found = self.client.lookup(layout, self.tokens)
        self.assertEqual((found.usable_tokens, len(found.blocks)), (300, 2))
        self.assertIsInstance(found.miss, lkv.NotStoredError)
        # Another sequence shares 256 + 10 tokens: of the second chunk only its leading tokens are of use.
        other = self.tokens.copy()
        other[266:] += 1
        self.assertPlanes(self.client.get(layout, tokens=other), self.planes, 266)
        again = self.client.put(layout, self.tokens, self.planes, preset=lkv.Preset.EXACT)
        self.assertEqual([block.have_it for block in again.blocks], [True, False, False])
        self.assertEqual(again.sent_bytes, (600 - 256) * self.layout.token_bytes)
        self.assertIsNone(self.client.lookup(layout, self.tokens).miss)
        self.assertEqual(self.client.lookup(layout, self.tokens, salt="adapter").usable_tokens, 0)
        # Chunks can be put one after another; tensors of those before are not needed.
        tail = self.client.put(layout, self.tokens, [[p[256:] for p in planes] for planes in self.planes], preset=lkv.Preset.EXACT, start=256, salt="s")
        self.assertEqual([b.start_position for b in tail.blocks], [256, 512])
        self.assertPlanes(self.client.get(layout, blocks=[b.content_hash for b in tail.blocks]),
                          [[p[256:] for p in planes] for planes in self.planes], 344)

    def test_chain_hashes_are_the_daemons(self):
        layout = self.client.register_layout(self.layout, namespace="small", chunk_tokens=16)
        self.client.put(layout, self.tokens, self.planes)
        stored = [found.block.content_hash for found in self.client.lookup(layout, self.tokens).blocks]
        self.assertEqual(stored, lkv.chain_hashes(layout.fingerprint, self.tokens, 16))
        self.assertEqual(len(stored), 38)

    def test_dtypes_strides_and_layer_ranges(self):
        for dtype in lkv.DType:
            planes = (lkv.Plane("k", lkv.PlaneRole.KEY, 3, 24, dtype, lkv.Rope(lkv.RopeStyle.NEOX, 16)),
                      lkv.Plane("v", lkv.PlaneRole.VALUE, 3, 16, dtype), lkv.Plane("state", lkv.PlaneRole.OPAQUE, 1, 5, dtype))
            odd = lkv.Layout("odd", (lkv.Layer(planes[:2]), lkv.Layer(planes), lkv.Layer(planes[:2])))
            tensors = random_planes(self.rng, odd, 40)
            strided = [[np.ascontiguousarray(t.swapaxes(0, 1)).swapaxes(0, 1) for t in layer] for layer in tensors]
            layout = self.client.register_layout(odd, namespace="odd")
            self.client.put(layout, self.tokens[:40], strided, preset=lkv.Preset.EXACT, session=dtype.name)
            self.assertPlanes(self.client.get(layout, session=dtype.name), tensors, 40)
            self.assertPlanes(self.client.get(layout, session=dtype.name, first_layer=1, layer_count=1), tensors[1:2], 40)

    def test_models_with_scaled_rotation_are_described(self):
        configs = [
            ({"rope_type": "linear", "factor": 4.0}, lkv.RopeScalingKind.LINEAR),
            ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
             lkv.RopeScalingKind.LLAMA3),
            ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, lkv.RopeScalingKind.YARN)]
        for scaling, kind in configs:
            rope = lkv.Rope.of_config(types.SimpleNamespace(rope_theta=500000.0, rope_scaling=scaling), 16)
            self.assertEqual((rope.style, rope.rotary_dims, rope.base, rope.scaling.kind), (lkv.RopeStyle.NEOX, 16, 500000.0, kind))
            # The daemon takes the description, and rotates keys there and back by it.
            layout = self.client.register_layout(lkv.Layout.uniform(kind.name, layers=2, kv_heads=2, head_dim=16, rope=rope))
            planes = random_planes(self.rng, layout.layout, 40)
            self.client.put(layout, self.tokens[:40], planes, preset=lkv.Preset.NEAR, session=kind.name)
            for got, want in zip(self.client.get(layout, session=kind.name).planes, planes):
                self.assertLess(np.abs(got[0].astype(np.float32) - want[0].astype(np.float32)).max(), 0.2)
        plain = lkv.Rope.of_config(types.SimpleNamespace(rope_theta=10000.0, partial_rotary_factor=0.5), 64)
        self.assertEqual((plain.rotary_dims, plain.scaling), (32, None))
        for unknown in ({"rope_type": "longrope", "factor": 4.0}, {"rope_type": "dynamic", "factor": 2.0}, {"rope_type": "llama3", "factor": 8.0}):
            self.assertIsNone(lkv.Rope.of_config(types.SimpleNamespace(rope_theta=10000.0, rope_scaling=unknown), 64))

    def test_layers_come_one_by_one_in_bounded_memory(self):
        big = lkv.Layout.uniform("big", layers=24, kv_heads=8, head_dim=128)
        layout = self.client.register_layout(big)
        tokens = np.arange(1024, dtype=np.uint32)
        layer = random_planes(self.rng, lkv.Layout("one", big.layers[:1]), 1024)[0]  # 4 MiB a layer, 96 MiB in all
        planes = [layer] * 24

        def grown_by(work):
            with open("/proc/self/clear_refs", "w") as f:
                f.write("5")
            before = self.memory("VmRSS")
            work()
            return self.memory("VmHWM") - before

        put_bytes = grown_by(lambda: self.client.put(layout, tokens, planes, preset=lkv.Preset.EXACT))
        seen = []

        def read():
            with self.client.stream(layout, tokens=tokens) as reader:
                self.assertEqual(reader.token_count, 1024)
                for index, got in reader:
                    seen.append(index)
                    for a, b in zip(got, planes[index]):
                        np.testing.assert_array_equal(a, b)

        get_bytes = grown_by(read)
        print(f"put of {big.token_bytes * 1024 >> 20} MiB grew by {put_bytes >> 20} MiB, get by {get_bytes >> 20} MiB")
        self.assertEqual(seen, list(range(24)))
        self.assertLess(put_bytes, 48 << 20)
        self.assertLess(get_bytes, 48 << 20)
        with self.client.stream(layout, tokens=tokens) as reader:
            next(iter(reader))
        deadline = time.monotonic() + 30
        while self.client.stats()["open_streams"] and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertEqual(self.client.stats()["open_streams"], 0)

    @staticmethod
    def memory(what):
        with open("/proc/self/status") as f:
            return next(int(line.split()[1]) << 10 for line in f if line.startswith(what + ":"))

    def test_broken_connections_are_taken_up_where_they_broke(self):
        proxy = CuttingProxy(self.daemon.tcp, cut_after_bytes=60_000, cuts=3)
        self.addCleanup(proxy.close)
        # More errors than cuts: on a busy machine the first attempt at a new connection may fail.
        client = self.connect(proxy.address, retry=lkv.RetryPolicy(max_errors=30, initial_backoff_s=0.01, max_backoff_s=0.5))
        layout = client.register_layout(self.layout, chunk_tokens=64)
        result = client.put(layout, self.tokens, self.planes, preset=lkv.Preset.EXACT)
        self.assertEqual(len(result.blocks), 10)
        self.assertPlanes(client.get(layout, tokens=self.tokens), self.planes, 600)
        self.assertEqual(proxy.cuts_done, 3)

    def test_a_restarted_daemon_is_told_the_layout_again(self):
        client = self.connect(self.daemon.socket, retry=lkv.RetryPolicy(max_errors=50, max_backoff_s=0.2))
        layout = client.register_layout(self.layout)
        self.daemon.kill()
        self.daemon = Daemon(self.directory, self.memory_bytes)
        self.addCleanup(self.daemon.kill)
        client.put(layout, self.tokens, self.planes, preset=lkv.Preset.EXACT)
        self.assertPlanes(client.get(layout, tokens=self.tokens), self.planes, 600)

    def test_sessions_pins_and_deletion(self):
        layout = self.client.register_layout(self.layout, namespace="n")
        self.client.put(layout, self.tokens, self.planes, session="a", ttl_ms=3_600_000)
        self.client.put(layout, self.tokens[:256], [[p[:256] for p in planes] for planes in self.planes], session="b")
        self.assertEqual({s.name: s.tokens for s in self.client.sessions("n")}, {"a": 600, "b": 256})
        self.assertGreater(self.client.session("a", namespace="n").expires_ms, time.time() * 1000)
        self.assertEqual(self.client.pin(namespace="n", session="b"), (1, 0))
        self.assertTrue(self.client.session("b", namespace="n").pinned)
        self.assertEqual(self.client.unpin(namespace="n", session="b"), (1, 0))
        self.assertEqual(self.client.touch(namespace="n", blocks=[b"x" * 32]), (0, 1))
        self.client.delete(namespace="n", session="a")
        self.assertEqual(self.client.lookup(layout, self.tokens).usable_tokens, 256)

    def test_errors_are_typed_and_say_what_to_do(self):
        layout = self.client.register_layout(self.layout)
        with self.assertRaises(lkv.NotStoredError) as caught:
            self.client.get(layout, session="nobody")
        self.assertEqual(caught.exception.reason, lkv.Reason.NOT_STORED)
        self.assertIn("nobody", str(caught.exception))
        with self.assertRaises(lkv.NotStoredError):
            self.client.get(layout, tokens=self.tokens)
        self.client.put(layout, self.tokens, self.planes, preset=lkv.Preset.TINY)
        exact = lkv.QualityBounds(require_exact=True)
        self.assertIsInstance(self.client.lookup(layout, self.tokens, bounds=exact).miss, lkv.QualityError)
        with self.assertRaises(lkv.QualityError):
            self.client.get(layout, blocks=lkv.chain_hashes(layout.fingerprint, self.tokens, 256), bounds=exact)
        with self.assertRaises(lkv.LatticeKVError) as caught:
            self.client.register_layout(self.layout, chunk_tokens=64)
        self.assertIn("chunks of 256", str(caught.exception))
        with self.assertRaises(lkv.InvalidArgumentError):
            self.client.register_layout(lkv.Layout.uniform("bad", layers=1, kv_heads=1, head_dim=7))
        cases = [
            lambda: self.client.put(layout, self.tokens[:-1], self.planes),
            lambda: self.client.put(layout, self.tokens, self.planes[:-1]),
            lambda: self.client.put(layout, self.tokens, [[p.astype(np.float32) for p in planes] for planes in self.planes]),
            lambda: self.client.put(layout, self.tokens, self.planes, start=5),
            lambda: self.client.put(layout, [-1], self.planes),
            lambda: self.client.get(layout),
            lambda: self.client.get(layout, session="a", first_layer=3),
        ]
        for case in cases:
            with self.assertRaises(ValueError):
                case()
        for address in ("nowhere", "unix:", "host:0"):
            with self.assertRaises(lkv.InvalidArgumentError):
                lkv.connect(address)
        with self.assertRaises(lkv.UnavailableError):
            self.connect("unix:" + self.path("nobody.sock"), retry=FAST_RETRY).stats()

    def test_a_block_that_does_not_fit_fails_alone_and_the_others_are_stored(self):
        layout = self.client.register_layout(self.layout)
        result = self.client.put(layout, self.tokens, self.planes, durable=True, partial_ok=True)
        self.assertEqual(len(result.blocks), 3)
        self.assertTrue(all(block.error is not None for block in result.blocks))  # this daemon has no disk
        with self.assertRaises(lkv.LatticeKVError) as caught:
            self.client.put(layout, self.tokens, self.planes, durable=True)
        self.assertIn("disk", str(caught.exception))
        self.assertEqual(len(caught.exception.result.blocks), 3)


class LyingServer:
    """Answers GetBlocks with the messages it was given."""

    def __init__(self, messages):
        path, request, _, _, _ = METHODS["GetBlocks"]
        handler = grpc.unary_stream_rpc_method_handler(lambda request, context: iter(messages), request_deserializer=request.FromString,
                                                       response_serializer=lambda m: m.SerializeToString())
        service, method = path[1:].split("/")
        self.server = grpc.server(futures.ThreadPoolExecutor(2))
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()


class WhatTheClientRefuses(unittest.TestCase):
    """Two blocks of 16 and 4 tokens, two layers of one plane of 16 bytes a token."""

    def setUp(self):
        plane = lkv.Plane("v", lkv.PlaneRole.VALUE, 1, 8)
        self.layout = lkv.RegisteredLayout(lkv.Layout("m", (lkv.Layer((plane,)),) * 2), "", b"f" * 32, 16)
        self.messages = [self.opened(0, 16), self.opened(1, 4)]
        for layer in range(2):
            self.messages += [self.part(0, layer, 16), self.part(1, layer, 4)]

    @staticmethod
    def opened(index, tokens):
        reply = message_class("GetBlocksResponse")()
        reply.open.index = index
        reply.open.block.content_hash = bytes([index]) * 32
        reply.open.block.tokens = tokens
        return reply

    @staticmethod
    def part(index, layer, tokens):
        import google_crc32c
        reply = message_class("GetBlocksResponse")()
        data = bytes([10 * layer + index]) * (16 * tokens)
        reply.part.index, reply.part.layer, reply.part.offset, reply.part.data = index, layer, layer * 16 * tokens, data
        reply.part.crc32c = google_crc32c.value(data)
        return reply

    def get(self, messages, **what):
        server = LyingServer(messages)
        self.addCleanup(server.server.stop, None)
        with lkv.connect(server.address, lkv.ClientOptions(retry=lkv.RetryPolicy(max_errors=0))) as client:
            return client.get(self.layout, **(what or {"blocks": [b"\0" * 32, b"\1" * 32]}))

    def test_the_truth_is_taken(self):
        prefix = self.get(self.messages)
        self.assertEqual(prefix.token_count, 20)
        self.assertEqual([int(x) for x in prefix.planes[1][0].view(np.uint8)[[0, 15, 16, 19], 0, 0]], [10, 10, 11, 11])

    def test_every_lie_is_refused(self):
        def changed(at, change):
            out = [message_class("GetBlocksResponse").FromString(m.SerializeToString()) for m in self.messages]
            change(out[at])
            return out

        def set_part(**fields):
            return lambda message: [setattr(message.part, name, value) for name, value in fields.items()]

        lies = {
            "another block": changed(0, lambda m: setattr(m.open.block, "content_hash", b"z" * 32)),
            "index": changed(1, lambda m: setattr(m.open, "index", 2)),
            "token ids": changed(0, lambda m: m.open.token_ids.extend([1, 2])),
            "checksum": changed(2, set_part(crc32c=1)),
            "offset": changed(4, set_part(offset=0)),
            "layer": changed(2, set_part(layer=1)),
            "plane": changed(2, set_part(plane=1)),
            "block of a part": changed(2, set_part(index=9)),
            "more blocks": [*self.messages[:3], self.messages[1], *self.messages[3:]],
            "twice": [*self.messages[:3], self.messages[2], *self.messages[3:]],
            "too little": self.messages[:-1],
            "too few blocks": self.messages[:1],
        }
        for name, messages in lies.items():
            with self.subTest(lie=name), self.assertRaises(lkv.BadReplyError):
                self.get(messages)

    def test_a_damaged_block_ends_the_prefix_before_it(self):
        failed = message_class("GetBlocksResponse")()
        failed.failed.index = 1
        failed.failed.miss.reason = lkv.Reason.CORRUPT
        failed.failed.miss.message = "block 1 is damaged"
        prefix = self.get([*self.messages[:5], failed])
        self.assertEqual(prefix.token_count, 16)
        self.assertEqual([len(layer[0]) for layer in prefix.planes], [16, 16])
        self.assertIsInstance(prefix.miss, lkv.CorruptError)
        failed.failed.index = 0
        rest = [self.messages[0], self.messages[1], failed, self.messages[3], self.messages[5]]
        with self.assertRaises(lkv.CorruptError):
            self.get(rest)

    def test_reasons_this_version_does_not_know_are_kept(self):
        error = from_detail(message_class("ErrorDetail")(reason=99, message="new"), "NOT_FOUND")
        self.assertIsInstance(error, lkv.NotStoredError)
        self.assertEqual((error.reason, str(error)), (99, "new"))


if __name__ == "__main__":
    unittest.main()
