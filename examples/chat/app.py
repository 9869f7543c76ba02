"""A chat: this knows who somebody is. The store is mounted below, and its rules say who may read and write which room."""

import os
import secrets
import threading
import unicodedata
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError
from flask import Flask, Response, jsonify, request, session
from flask.typing import ResponseReturnValue

import kvstore
from kvstore.core.errors import BatchRefused, PreconditionFailed

# A person's id is random, and never changes; the name is for people. Both are claims, so the rules bind who writes what.
SIGNED = {"author": "{sub}", "name": "{name}"}
RULES: list[list[Any]] = []
for room in ("/chat/general", "/chat/private/{sub}/*", "/chat/private/*/{sub}"):  # a private room is named after its two people
    RULES += [
        # path                      read    append       write
        [f"{room}/log/*",           "user", "post:user", "nobody", SIGNED],
        [f"{room}/typing/{{sub}}",  "user", "user",      "user", {"name": "{name}"}],
        [f"{room}/**",              "user", "nobody",    "nobody"],
    ]  # fmt: skip
RULES += [
    # What somebody has in their list of private rooms: an entry for each other person, who keeps it up to date too.
    ["/chat/inbox/{sub}/**",        "user", "user",      "user"],
    ["/chat/inbox/*/{sub}",         "user", "user",      "user", {"name": "{name}"}],
    # Who is here: held by the stream of that person's page.
    ["/chat/online/{sub}",          "user", "user",      "user", {"name": "{name}"}],
    ["/chat/online/**",             "user", "nobody",    "nobody"],
]  # fmt: skip

DEMO = {"pablo": "Pablo", "joe": "Joe", "mary": "Mary", "alex": "Alex"}
DEMO_PASSWORD = "password123"  # noqa: S105  # everybody may know it
DEMO_MESSAGES = [
    ("pablo", "Hello everyone!"),
    ("mary", "Hi Pablo. A click on a name opens a private room with that person."),
    ("joe", "Only those two see what they write there."),
    ("alex", "And who is here has a green dot."),
]
YEAR = "365d"  # what nobody uses for so long is forgotten

app = Flask(__name__)
store = kvstore.connect()
hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)  # OWASP's least: 19 MiB and some 20 ms each
hashing = threading.BoundedSemaphore(os.cpu_count() or 1)  # so many at once take up the processors, and no more memory


def account_path(name: str) -> str:
    """Where the account of a name is. Case makes no other name, nor does another spelling of the same characters."""
    return "/accounts/=" + quote(unicodedata.normalize("NFKC", name).casefold(), safe="")


def claim(name: str, password: str, user: str) -> Any:
    """Make the account of a name, and return its document; None if the name is taken."""
    account = {"id": user, "name": name, "hash": hasher.hash(password)}
    with suppress(PreconditionFailed):
        return store.put(account_path(name), account, if_none_match="*", ttl=YEAR)
    return None


def make_demo() -> None:
    """Make the demo people and their messages, once: instances that start together have one store."""
    for user, name in DEMO.items():
        if not store.get(account_path(name)):
            claim(name, DEMO_PASSWORD, user)
    log = [{"author": user, "name": DEMO[user], "text": text} for user, text in DEMO_MESSAGES]
    first = {"method": "put", "path": "/chat/demo", "value": True, "if_none_match": "*"}
    with suppress(BatchRefused):  # another instance has done so
        store.batch([first, *({"method": "post", "path": "/chat/general/log/", "value": each} for each in log)])


def secret_key() -> str:
    """The key that signs sessions: SECRET_KEY, or one that all instances share, made at the first start."""
    if key := os.environ.get("SECRET_KEY"):
        return key
    with suppress(PreconditionFailed):
        store.put("/secret", secrets.token_hex(32), if_none_match="*", ttl=YEAR)
    return str(store.patch("/secret", ttl=YEAR).value)


app.config.update(SECRET_KEY=secret_key(), SESSION_COOKIE_NAME="chat", SESSION_COOKIE_SAMESITE="Lax")
app.config["MAX_CONTENT_LENGTH"] = 16 * 1024  # of a login; the store has limits of its own
make_demo()


def principal() -> dict[str, str] | None:
    """Who asks, for the rules: the claims of the session."""
    return {"sub": session["id"], "name": session["username"]} if "id" in session else None


app.register_blueprint(kvstore.blueprint(principal=principal, rules=RULES))


@app.before_request
def refuse_other_sites() -> ResponseReturnValue | None:
    """SameSite=Lax lets in pages of other ports and hosts of this site, so only the page itself may use its session."""
    if request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin") or request.path == "/":
        return None
    return jsonify(message="Only the page of the chat may ask for this"), 403


@app.get("/")
def page() -> Response:
    """The page. Without the right to run what is written into it, a message is text."""
    answer = app.send_static_file("index.html")
    own = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'"
    answer.headers["Content-Security-Policy"] = f"{own}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return answer


@app.get("/me")
def me() -> Response:
    """Who the session is of, or null."""
    return jsonify({"id": session["id"], "username": session["username"]} if "id" in session else None)


@app.post("/login")
def login() -> ResponseReturnValue:
    """Begin a session: of a person by their password, or of a new one where nobody has the name."""
    asked = request.get_json(silent=True)
    name, password = (asked.get("username"), asked.get("password")) if isinstance(asked, dict) else (None, None)
    name = " ".join(name.split()) if isinstance(name, str) else ""
    if not 0 < len(name) <= 40 or not name.isprintable() or not isinstance(password, str) or not password:
        return jsonify(message="Send a username of 1 to 40 characters, and a password"), 400
    with hashing:
        found = store.get(account_path(name))
        made = None if found else claim(name, password, secrets.token_hex(8))
        account = (made or found or store.get(account_path(name))).value
        try:
            hasher.verify(account["hash"], password)
        except VerifyMismatchError:
            return jsonify(message="Invalid username or password"), 401
    store.patch(account_path(name), ttl=YEAR)
    session.permanent = True
    session.update(id=account["id"], username=account["name"])
    return me(), 201 if made else 200


@app.post("/logout")
def logout() -> ResponseReturnValue:
    """End the session."""
    session.clear()
    return "", 204
