"""What runs the service elsewhere, run here: the steps of the Dockerfile, the services of compose.yaml, the unit of systemd."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kvstore.core.settings import read_settings
from tests.support.nginx import needs_nginx, nginx
from tests.support.serving import Served, ended, run_kvstore
from tests.support.stores import answers, connect, free_ports, make_directory, redis_server, wait_for_redis
from tests.support.tokens import SECRET

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy" / "kvstore@.service"
LIMIT_S = 60


def run(command: str, directory: Path, **environ: str) -> None:
    """A command of a shell, which succeeds."""
    bare = {"PATH": os.environ["PATH"], "HOME": str(directory)}
    ran = ended(["bash", "-c", command], directory, bare | environ, LIMIT_S)
    assert ran.returncode == 0, ran.stdout + ran.stderr


# --- Dockerfile ---------------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile and their arguments."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8")).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def copy(sources: list[str], to: Path) -> None:
    """COPY, of files that .dockerignore leaves in."""
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    for source in sources:
        assert source in kept
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, to, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, to)


@pytest.mark.slow
def test_the_dockerfile(directory: Path) -> None:
    """Each of its steps, in order, in a directory for its root: what it builds serves, keeps its data, and is healthy.

    What requirements.txt asks for is installed where the tests run, in the same versions; pip finds it there.
    """
    home, environment, environ = directory / "app", directory / "venv", dict[str, str]()
    home.mkdir()
    (directory / "data").mkdir(mode=0o700)
    run(f"{sys.executable} -m venv {environment}", directory)
    built = {
        "PATH": f"{environment}/bin:{os.environ['PATH']}",
        "PYTHONPATH": sysconfig.get_paths()["purelib"],
        "PIP_NO_BUILD_ISOLATION": "false",  # which means that there is none
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    command, check = [], []
    for word, rest in instructions():
        if word == "RUN" and not rest.startswith("useradd"):  # the only step that takes root
            run(rest, home, **built)
        elif word == "COPY":
            *sources, to = rest.split()
            copy(sources, home / to)
        elif word == "ENV":
            environ |= dict(each.split("=", 1) for each in rest.split())
        elif word == "CMD":
            command = json.loads(rest)
        elif word == "HEALTHCHECK":
            check = json.loads(rest.partition("CMD ")[2])
        else:
            assert word in ("FROM", "WORKDIR", "RUN", "USER", "VOLUME", "EXPOSE")
    assert read_settings(environ).host == "0.0.0.0"
    [port] = free_ports(1)
    environ |= built | {"HOST": "127.0.0.1", "PORT": str(port), "KVSTORE_DATA": f"{directory}{environ['KVSTORE_DATA']}"}
    shutil.rmtree(home / "kvstore")  # what is installed is enough
    for answer in (201, 200):
        served = Served(directory, [f"{environment}/bin/{command[0]}", *command[1:]], environ)
        try:
            assert f"data in {directory}/data" in served.said
            assert served.request("PUT", "/a/b", (), b"1").status == answer
            run(shlex.join(check), directory, **environ)
            served.stop()
        finally:
            served.kill()
    with pytest.raises(AssertionError, match="Connection refused"):
        run(shlex.join(check), directory, **environ)


# --- compose.yaml -------------------------------------------------------------------------------------------------------


def settings_of(service: dict[str, Any], given: dict[str, str]) -> dict[str, str]:
    """The environment of a service, with variables as Compose puts them in."""

    def value(found: re.Match[str]) -> str:
        name, operator, other = found[1], found[2], found[3]
        assert operator == ":-" or name in given, other
        return given.get(name) or other

    return {name: re.sub(r"\$\{(\w+)(:[-?])([^}]*)\}", value, text) for name, text in service["environment"].items()}


@pytest.mark.slow
@needs_nginx
def test_the_services_of_compose(directory: Path) -> None:
    """The same commands with the same environment, on ports of this machine: Redis, two instances, and nginx in front."""
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"]
    instances = [each for each in services.values() if "build" in each]
    assert len(instances) == 2
    assert services["nginx"]["volumes"][0].startswith("./deploy/nginx.conf:/etc/nginx/conf.d/")
    [redis_port, *ports] = free_ports(3)
    executable, *options = services["redis"]["command"]
    assert executable == "redis-server"
    with ExitStack() as stack:
        redis = redis_server(directory, "--port", str(redis_port), "--bind", "127.0.0.1", *options)
        stack.callback(redis.wait)
        stack.callback(redis.kill)
        client = stack.enter_context(connect(f"redis://127.0.0.1:{redis_port}"))
        wait_for_redis(redis, directory, lambda: answers(client))
        assert client.config_get("maxmemory*")["maxmemory-policy"] == "noeviction"
        served = []
        for service, port in zip(instances, ports, strict=True):
            environ = settings_of(service, {"KVSTORE_SECRET": SECRET})
            assert service["network_mode"] == "service:nginx"
            assert f"127.0.0.1:{environ['PORT']}" in (ROOT / "deploy" / "nginx.conf").read_text("utf-8")
            there = {"PORT": str(port), "REDIS_URL": environ["REDIS_URL"].replace("redis:6379", f"127.0.0.1:{redis_port}")}
            home = make_directory()
            stack.callback(shutil.rmtree, home, ignore_errors=True)
            served.append(Served(home, [str(Path(sys.executable).with_name("kvstore"))], environ | there))
            stack.callback(served[-1].kill)
        host, port = stack.enter_context(nginx(directory, [each.at for each in served]))
        ask = f"curl -sS -o {directory}/answer -w '%{{http_code}}' http://{host}:{port}/a/b"
        run(f'test "$({ask})" = 401', directory)
        token = printed_token(directory)
        run(f"test \"$({ask} -X PUT -d 1 -H 'Authorization: Bearer {token}')\" = 201", directory)


def printed_token(directory: Path) -> str:
    """A token of the role admin, as docs/operations.md makes one."""
    return run_kvstore(directory, "token", "--role", "admin", KVSTORE_SECRET=SECRET).stdout.strip()


# --- systemd ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze on the PATH")
def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    """It has nothing to say about it; only the place of the command is another."""
    command = Path(sys.executable).with_name("kvstore")
    unit = tmp_path / "kvstore@8001.service"
    unit.write_text(re.sub(r"(?m)^ExecStart=.*$", f"ExecStart={command}", UNIT.read_text("utf-8")))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    said = [line for line in verified.stderr.splitlines() if "kvstore" in line]
    assert (verified.returncode, said) == (0, []), verified.stderr


@pytest.mark.slow
def test_an_instance_as_systemd_starts_it(directory: Path) -> None:
    """The settings of deploy/kvstore.env and the unit are ours, and the command serves with them."""
    lines = [line.partition("=") for line in UNIT.read_text("utf-8").splitlines() if "=" in line and not line.startswith("#")]
    unit = {name: value for name, _, value in lines}
    [port] = free_ports(1)
    environ = dict([unit["Environment"].replace("%i", str(port)).split("=", 1)])
    assert unit["EnvironmentFile"] == "/etc/kvstore.env"
    text = (ROOT / "deploy" / "kvstore.env").read_text("utf-8")
    environ |= dict(line.split("=", 1) for line in text.splitlines() if not line.startswith("#"))
    assert read_settings(environ).proxies == 1
    assert Path(unit["ExecStart"]).name == "kvstore"
    served = Served(directory, [str(Path(sys.executable).with_name("kvstore"))], environ)
    try:
        assert served.at[1] == port
        assert served.request("GET", "/_/health").status == 200
        served.stop()
    finally:
        served.kill()


# --- The pages -----------------------------------------------------------------------------------------------------------


def test_the_files_that_the_page_installs_are_there() -> None:
    """docs/operations.md names no file of deploy/ that has another name, and all of them."""
    named = set(re.findall(r"deploy/[\w@.]+\w", (ROOT / "docs" / "operations.md").read_text("utf-8")))
    assert named == {path.relative_to(ROOT).as_posix() for path in (ROOT / "deploy").iterdir()}


@pytest.mark.slow
@needs_nginx
@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl on the PATH")
def test_tls_as_the_page_has_it(directory: Path) -> None:
    """The lines of docs/operations.md in place of `listen 8080;`: nginx speaks TLS and HTTP/2."""
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    [lines] = re.findall(r"^(listen 443 ssl.*?)```", text, re.DOTALL | re.MULTILINE)
    run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout {directory}/key -out {directory}/cert",
        directory,
    )
    lines = re.sub(r"/etc/letsencrypt/\S+/fullchain.pem", f"{directory}/cert", lines)
    lines = re.sub(r"/etc/letsencrypt/\S+/privkey.pem", f"{directory}/key", lines)
    nobody = [("127.0.0.1", port) for port in free_ports(2)]
    with nginx(directory, nobody, lines.replace("listen 443", "listen {}")) as (host, port):
        run(
            f"test \"$(curl -sk -o /dev/null -w '%{{http_code}} %{{http_version}}' https://{host}:{port}/)\" = '502 2'",
            directory,
        )
