"""The pages for people and the modules they load: the static files beside this module.

A file is read when it is first asked for, once per process. A page runs no inline script, loads nothing from other origins,
is shown in no frame, and cannot make HTML of a string. Sources: https://www.w3.org/TR/CSP3/, https://www.w3.org/TR/trusted-types/.
"""

from functools import cache
from importlib.resources import files

from kvstore.http.messages import Headers
from kvstore.http.static import Static, make_static

_FILES = files(__name__)
_TYPES = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}
EXPLORER = "explorer.html"

# The path of each page, and the name of its file.
PAGES: dict[str, str] = {
    f"/_/{'' if each.name == EXPLORER else each.name}": each.name
    for each in _FILES.iterdir()
    if each.name.rpartition(".")[2] in _TYPES
}

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Headers = (
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)


@cache
def read_page(name: str) -> Static:
    """Return a file of this directory."""
    media_type = f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8"
    return make_static((_FILES / name).read_bytes(), media_type, _HEADERS)
