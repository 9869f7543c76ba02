"""Adds two numbers later: a page asks for it, a worker does it, another page shows it."""

import os

from flask import Flask, Response, jsonify, request, session

from kvstore import DelayedResult, queuefunc

app = Flask(__name__)
app.secret_key = os.environ.get("SECRET_KEY", "dev")


@queuefunc
def add(a: int, b: int) -> int:
    """The sum, as a worker computes it."""
    return a + b


@app.get("/add")
def ask() -> str:
    """Queue a sum, and remember in the session where its result will be."""
    session["key"] = add.delay(request.args.get("a", 0, int), request.args.get("b", 0, int)).key
    return "Waiting for result..."


@app.get("/add-result")
def result() -> Response:
    """The sum, once it is there."""
    value = DelayedResult(session["key"]).return_value if "key" in session else None
    return jsonify(ready=value is not None) if value is None else jsonify(ready=True, result=value)
