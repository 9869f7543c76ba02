"""The command `kvstore`: serve with the settings in the environment."""

import sys

from kvstore import __version__
from kvstore.core.settings import SETTINGS

_USAGE = """\
usage: kvstore            serve HTTP with the settings in the environment
       kvstore --help     this text
       kvstore --version

settings:
"""


def main() -> None:
    """Run the command with the arguments of the process; exits with status 2 if they are wrong."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print(f"kvstore {__version__}")
    elif arguments in (["--help"], ["-h"]):
        print(usage(), end="")
    elif arguments:
        print(f"kvstore: unknown argument {arguments[0]!r}\n{usage()}", end="", file=sys.stderr)
        sys.exit(2)
    else:
        _serve()


def usage() -> str:
    """Return the help text, with a line for every setting."""
    return _USAGE + "".join(f"  {row.name:<24} {row.meaning} (default: {row.default or 'empty'})\n" for row in SETTINGS)


def _serve() -> None:
    try:
        from gunicorn.app.wsgiapp import WSGIApplication
    except ModuleNotFoundError:
        sys.exit("kvstore: serving needs gunicorn; install it with: pip install 'kvstore[server]'")
    sys.argv = ["kvstore", "-c", "python:kvstore.serving.gunicorn_config"]
    WSGIApplication(None, prog="kvstore").run()
