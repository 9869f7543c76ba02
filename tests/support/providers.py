"""An identity provider: serves its keys over HTTP, and counts who asks for them."""

import http.server
import threading
import time
from contextlib import suppress
from typing import Any

from tests.support.tokens import jwks


class Provider:
    """Answers with `keys` and `status`, 0 for what is no HTTP, when `gate` is open; `came` says that somebody has asked.

    After `trickles`, a part of a response, one byte of it comes every 0.1 s.
    """

    def __init__(self) -> None:
        self.keys = jwks("RS256")
        self.asked = 0
        self.status = 200
        self.trickles = b""
        self.came, self.gate = threading.Event(), threading.Event()
        self.gate.set()
        provider = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked += 1
                provider.came.set()
                provider.gate.wait(4)
                if provider.trickles:
                    with suppress(OSError):
                        self.wfile.write(provider.trickles)
                        for _ in range(200):
                            time.sleep(0.1)
                            self.wfile.write(b"a")
                    return
                if not provider.status:
                    self.wfile.write(b"220 mail.example ESMTP\r\n")
                    return
                self.send_response(200 if self.path == "/elsewhere" else provider.status)
                if provider.status == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(provider.keys.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/keys"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> "Provider":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._server.server_close()
