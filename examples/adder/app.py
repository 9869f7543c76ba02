"""Adds two numbers later: a page asks for it, a worker does it, another page shows it."""

import os

from flask import Flask, Response, abort, jsonify, request, session

from kvstore import DelayedResult, queuefunc

app = Flask(__name__)
app.secret_key = os.environ.get("SECRET_KEY", "dev")


@queuefunc
def add(a: int, b: int) -> int:
    """The sum, as a worker computes it."""
    return a + b


@app.get("/add")
def ask() -> str:
    """Queue a sum, and keep the path of its result in the session."""
    a, b = request.args.get("a", type=int), request.args.get("b", type=int)
    if a is None or b is None:
        abort(400, "a and b must be integers: /add?a=1&b=2")
    session["key"] = add.delay(a, b).key
    return "Waiting for result..."


@app.get("/add-result")
def result() -> Response:
    """The sum, once it is there. A sum that was shown is forgotten."""
    delayed = DelayedResult(session["key"]) if "key" in session else None
    value = delayed.return_value if delayed else None
    if delayed is None or value is None:
        return jsonify(ready=False)
    del session["key"]
    delayed.forget()
    return jsonify(ready=True, result=value)
