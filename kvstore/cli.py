"""The command `kvstore`: serve with the settings in the environment, print a token, or move documents in and out."""

import argparse
import os
import sys

from kvstore import __version__
from kvstore.core.numbers import parse_duration_s, parse_number
from kvstore.core.paths import MAX_SEGMENTS
from kvstore.core.settings import SETTINGS, InvalidSetting, read_settings

DAY_S = 86_400
MAX_TOKEN_S = 3650 * DAY_S


def main() -> None:
    """Run the command with the arguments of the process; exits with status 2 if they are wrong."""
    arguments = make_parser().parse_args()
    if arguments.command == "token":
        print(_token(arguments))
    elif arguments.command:
        from kvstore.transfer.command import run

        sys.exit(run(arguments))
    else:
        _serve()


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments; its help has a line for every setting."""
    parser = argparse.ArgumentParser(
        "kvstore",
        description="Without a command: serve HTTP with the settings in the environment.",
        epilog="settings:\n"
        + "".join(f"  {row.name:<24} {row.meaning} (default: {row.default or 'empty'})\n" for row in SETTINGS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"kvstore {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    token = commands.add_parser("token", help="print a token", description="Print a token that KVSTORE_SECRET signs.")
    token.add_argument("--sub", metavar="NAME", help="who the token is for: the claim `sub`")
    token.add_argument("--role", action="append", default=[], metavar="ROLE", help="a role, such as admin; may be repeated")
    token.add_argument(
        "--allow",
        action="append",
        default=[],
        type=_row,
        metavar="'RIGHT… PATH'",
        help="rights on a path besides those of the rules, such as 'append /sensors/7/**'; may be repeated",
    )
    token.add_argument("--ttl", type=_ttl_s, default=30 * DAY_S, metavar="TIME", help="how long it is valid (default: 30d)")
    exporting = commands.add_parser(
        "export",
        help="write documents as NDJSON",
        description='Write the documents at or below PATH to stdout, {"path","value","ttl"} a line.',
        epilog=TOKEN,
    )
    exporting.add_argument("where", nargs="*", metavar="URL PATH", help=f"{URL}; a document or a container (default: /)")
    importing = commands.add_parser(
        "import",
        help="store documents from NDJSON, or from one JSON text",
        description='Store documents, {"path","value","ttl"} a line, and name the lines that cannot be stored.',
        epilog=TOKEN,
    )
    importing.add_argument("file", metavar="FILE", help="a file of NDJSON; - for stdin")
    importing.add_argument("url", nargs="?", metavar="URL", help=URL)
    importing.add_argument(
        "--split", type=_levels, metavar="N", help="FILE is one JSON text, whose outer N levels become containers"
    )
    return parser


URL = "a URL of HTTP or of Redis (default: the configured store)"
TOKEN = "KVSTORE_TOKEN in the environment is the token for a service over HTTP."  # noqa: S105  # it says so


def _levels(text: str) -> int:
    levels = parse_number(text, 1, MAX_SEGMENTS)
    if levels is None:
        raise argparse.ArgumentTypeError(f"a number of levels from 1 to {MAX_SEGMENTS}")
    return levels


def _row(text: str) -> list[str]:
    """Return the rights on a path as the claim `allow` has them: the path first."""
    *rights, path = text.split()
    if not rights or not set(rights) <= {"read", "append", "write"} or not path.startswith("/"):
        raise argparse.ArgumentTypeError("rights (read, append, write), then a path: 'append /sensors/7/**'")
    return [path, *rights]


def _ttl_s(text: str) -> int:
    ttl_s = parse_duration_s(text)
    if ttl_s is None or not 1 <= ttl_s <= MAX_TOKEN_S:
        raise argparse.ArgumentTypeError("a time from 1s to 3650d, such as 12h or 30d")
    return ttl_s


def _token(arguments: argparse.Namespace) -> str:
    try:
        settings = read_settings(os.environ)
    except InvalidSetting as error:
        sys.exit(f"kvstore: {error}")
    if not settings.secrets:
        sys.exit(
            "kvstore: a token is signed with KVSTORE_SECRET, which is not set; make one with:"
            " python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    from kvstore.access.tokens import issue

    return issue(settings, ttl_s=arguments.ttl, sub=arguments.sub, roles=arguments.role, allow=arguments.allow).token


def _serve() -> None:
    try:
        from gunicorn.app.wsgiapp import WSGIApplication
    except ModuleNotFoundError:
        sys.exit("kvstore: serving needs gunicorn; install it with: pip install 'kvstore[server]'")
    sys.argv = ["kvstore", "-c", "python:kvstore.serving.gunicorn_config"]
    WSGIApplication(None, prog="kvstore").run()


if __name__ == "__main__":  # where the package was not installed, only what it needs: heroku run python -m kvstore.cli
    main()
