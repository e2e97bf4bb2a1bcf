"""A TCP proxy on 127.0.0.1 that cuts the connections through it after so many bytes, as a bad network does."""
import socket
import threading


class CuttingProxy:
    def __init__(self, target, cut_after_bytes, cuts=1):
        """target: "HOST:PORT". Cuts `cuts` times, each after that many bytes in either direction; then lets everything through."""
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._limit, self._cuts, self._passed = cut_after_bytes, cuts, 0
        self.cuts_done = 0
        self._lock = threading.Lock()
        self._open = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._listener.close()
        self._close(None)

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
            except OSError:
                return
            with self._lock:
                self._open |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    def _copy(self, source, sink):
        cut = False
        try:
            while data := source.recv(1 << 16):
                with self._lock:
                    self._passed += len(data)
                    cut = self.cuts_done < self._cuts and self._passed > self._limit
                    if cut:
                        self.cuts_done += 1
                        self._passed = 0
                if cut:
                    break
                sink.sendall(data)
        except OSError:
            pass
        # Of a cut the other direction hears here as well, and the client may have connected anew by then.
        self._close(None if cut else {source, sink})

    def _close(self, connections):
        """None: all of them."""
        with self._lock:
            closing = set(self._open) if connections is None else connections
            self._open -= closing
        for connection in closing:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            connection.close()
