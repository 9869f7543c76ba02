"""Starts nginx with the configuration of deploy/nginx.conf, on ports of the tests."""

import contextlib
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.stores import die_with_parent, free_ports, wait_until

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx.conf"
START_S = 60

needs_nginx = pytest.mark.skipif(not shutil.which("nginx"), reason="no nginx on the PATH")

Address = tuple[str, int]


@contextlib.contextmanager
def nginx(directory: Path, instances: Sequence[Address], listen: str = "listen {};") -> Iterator[Address]:
    """The address of an nginx in front of these instances, with these lines for where it listens."""
    [port] = free_ports(1)
    server = CONFIGURATION.read_text("utf-8").replace("listen 8080;", listen.format(f"127.0.0.1:{port}"))
    lines = re.findall(r" server 127\.0\.0\.1:800\d", server)
    for line, (host, at) in zip(lines, instances, strict=True):
        server = server.replace(line, f" server {host}:{at}")
    places = "".join(f"{name}_temp_path {directory}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    head = f"daemon off; master_process off; pid {directory}/nginx.pid; error_log {directory}/nginx.log; events {{}}"
    (directory / "nginx.conf").write_text(f"{head} http {{ access_log off; {places}\n{server} }}")
    process = subprocess.Popen(
        ["nginx", "-c", str(directory / "nginx.conf"), "-e", str(directory / "nginx.log")],
        preexec_fn=die_with_parent,  # noqa: PLW1509  # one system call, no lock
    )
    try:
        wait_until(lambda: _listens(port), START_S)
        yield "127.0.0.1", port
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), START_S):
        return True
    return False
