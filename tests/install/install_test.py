"""What `cmake --install` leaves is enough: a project outside the tree finds LatticeKV, builds against it and talks to the installed daemon."""
import os
import shutil
import subprocess
import tempfile
import time
import unittest

SOURCE = os.environ["LATTICEKV_SOURCE_DIR"]
BUILD = os.environ["LATTICEKV_BUILD_DIR"]


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise AssertionError("%s\n%s\n%s" % (" ".join(command), done.stdout, done.stderr))
    return done.stdout


class InstallTest(unittest.TestCase):
    def test_a_project_outside_the_tree_uses_the_client(self):
        with tempfile.TemporaryDirectory() as folder:
            prefix = os.path.join(folder, "prefix")
            run("cmake", "--install", BUILD, "--prefix", prefix)
            for header, _, files in os.walk(os.path.join(prefix, "include")):
                for name in files:
                    with open(os.path.join(header, name)) as text:
                        self.assertNotIn(SOURCE, text.read(), name)
            project = os.path.join(folder, "consumer")
            shutil.copytree(os.path.join(SOURCE, "tests", "install", "consumer"), project)
            build = os.path.join(folder, "build")
            run("cmake", "-S", project, "-B", build, "-DCMAKE_PREFIX_PATH=" + prefix, "-DCMAKE_BUILD_TYPE=Release")
            run("cmake", "--build", build)

            mocked = os.path.join(build, "mocked")
            if os.path.exists(mocked):
                run(mocked)

            socket = os.path.join(folder, "daemon.sock")
            daemon = subprocess.Popen([os.path.join(prefix, "bin", "latticekvd"), "--listen=unix:" + socket,
                                       "--memory_bytes=100000000", "--log_level=off"])
            try:
                deadline = time.monotonic() + 30
                while not os.path.exists(socket) and time.monotonic() < deadline:
                    time.sleep(0.05)
                self.assertIn("same bytes", run(os.path.join(build, "consumer"), "unix:" + socket, timeout=60))
            finally:
                daemon.kill()
                daemon.wait()


if __name__ == "__main__":
    unittest.main()
