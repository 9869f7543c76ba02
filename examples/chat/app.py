"""A chat: this knows who somebody is. The store is mounted below, and its rules say who may read and write which room."""

import os
import secrets
import threading
import unicodedata
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import argon2
from flask import Flask, Response, jsonify, request, session
from flask.typing import ResponseReturnValue

import kvstore
from kvstore.core.errors import BatchRefused, PreconditionFailed, Problem

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

DEMO = [
    ("pablo", "Pablo", "Hello everyone!"),
    ("mary", "Mary", "Hi Pablo. A click on a name opens a private room with that person."),
    ("joe", "Joe", "Only those two see what they write there."),
    ("alex", "Alex", "And who is here has a green dot."),
]
YEAR = "365d"  # what nobody uses for so long is forgotten
MAX_WRONG = 20  # passwords from one address, until it sends none for a minute

app = Flask(__name__)
store = kvstore.connect()
hasher = argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)  # OWASP's least: 19 MiB and some 20 ms each
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
    for user, name, _ in DEMO:
        claim(name, "password123", user)  # which everybody may know
    log = [{"author": user, "name": name, "text": text} for user, name, text in DEMO]
    first = {"method": "put", "path": "/chat/demo", "value": True, "if_none_match": "*"}
    with suppress(BatchRefused):  # another instance has done so
        store.batch([first, *({"method": "post", "path": "/chat/general/log/", "value": each} for each in log)])


def secret_key() -> Any:
    """The key that signs sessions: SECRET_KEY, or one that all instances share, made at the first start."""
    return os.environ.get("SECRET_KEY") or store.update("/secret", lambda key: key or secrets.token_hex(32), ttl=YEAR).value


app.config.update(SECRET_KEY=secret_key(), SESSION_COOKIE_NAME="chat", SESSION_COOKIE_SAMESITE="Lax", MAX_CONTENT_LENGTH=16_384)
make_demo()


def principal() -> Any:
    """Who asks, for the rules: the claims of a session, which is in the store until it ends."""
    found = store.get(session["at"]) if "at" in session else None
    return found.value if found else None


app.register_blueprint(kvstore.blueprint(principal=principal, rules=RULES))
app.register_error_handler(Problem, lambda problem: (jsonify(message=problem.detail), problem.status, problem.headers))


@app.before_request
def refuse_other_sites() -> ResponseReturnValue | None:
    """SameSite=Lax lets in pages of other ports and hosts of this site, so only the page itself may use its session."""
    is_own = request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin") or request.path == "/"
    return None if is_own else (jsonify(message="Only the page of the chat may ask for this"), 403)


@app.get("/")
def page() -> ResponseReturnValue:
    """The page. Without the right to run what is written into it, a message is text."""
    own = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'"
    policy = f"{own}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return app.send_static_file("index.html"), {"Content-Security-Policy": policy}


@app.get("/me")
def me() -> Response:
    """Who the session is of, or null."""
    return jsonify((who := principal()) and {"id": who["sub"], "username": who["name"]})


@app.post("/login")
def login() -> ResponseReturnValue:
    """Begin a session: of a person by their password, or of a new one where nobody has the name."""
    asked = request.get_json(silent=True)
    name, password = (asked.get("username"), asked.get("password")) if isinstance(asked, dict) else (None, None)
    name = " ".join(name.split()) if isinstance(name, str) else ""
    if not 0 < len(name) <= 40 or not name.isprintable() or not isinstance(password, str) or not password:
        return jsonify(message="Send a username of 1 to 40 characters, and a password"), 400
    wrong = f"/wrong/{request.remote_addr}"
    with hashing:
        if (before := store.get(wrong)) and before.value["count"] >= MAX_WRONG:
            return jsonify(message="Too many wrong passwords. Wait a minute"), 429, {"Retry-After": "60"}
        found = store.get(account_path(name))
        made = None if found else claim(name, password, secrets.token_hex(8))
        account = (made or found or store.get(account_path(name))).value
        try:
            hasher.verify(account["hash"], password)
        except argon2.exceptions.VerifyMismatchError:
            store.patch(wrong, {"count": {".sv": {"increment": 1}}}, ttl=60)
            return jsonify(message="Invalid username or password"), 401
    store.patch(account_path(name), ttl=YEAR)
    logout()
    session.permanent = True
    session["at"] = f"/sessions/{secrets.token_hex(16)}"
    store.put(session["at"], {"sub": account["id"], "name": account["name"]}, ttl=YEAR)
    return me(), 201 if made else 200


@app.post("/logout")
def logout() -> ResponseReturnValue:
    """End the session, for whoever has its cookie. A stream that is open goes on until its connection ends."""
    if "at" in session:
        store.delete(session["at"])
    session.clear()
    return "", 204
