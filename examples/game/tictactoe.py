"""The game itself: names, players and moves, as functions of values. A game is a JSON object, as it is stored."""

import secrets
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException

TONES, COLORS, ANIMALS = (line.split() for line in Path(__file__).with_name("words.txt").read_text("utf-8").splitlines())

Game = dict[str, Any]
MAX_PLAYERS = 8
MARKS = "XO"  # of the first two players; the others watch
LINES = ("012", "345", "678", "036", "147", "258", "048", "246")


def names() -> Iterator[str]:
    """Yield names such as dark-red-deer-42 for ever, with longer and longer numbers, so that one of them is free."""
    for digits in count(2):
        for _ in range(3):
            words = (secrets.choice(words) for words in (TONES, COLORS, ANIMALS))
            yield "-".join([*words, str(secrets.randbelow(10**digits))])


def new() -> Game:
    """Return a game that nobody has joined."""
    return {"made": {".sv": "timestamp"}, "players": [], "board": "." * 9, "line": None}


def join(game: Game, player: str, name: str) -> Game:
    """Return the game with this player; raises HTTPException if it is full."""
    if any(each["id"] == player for each in game["players"]):
        return game
    number = len(game["players"]) + 1
    if number > MAX_PLAYERS:
        raise HTTPException(409, "the game is full")
    return game | {"players": [*game["players"], {"id": player, "name": name or f"Player {number}"}]}


def move(game: Game, player: str | None, cell: int) -> Game:
    """Return the game after a move; raises HTTPException for one that is not permitted."""
    playing = [each["id"] for each in game["players"][: len(MARKS)]]
    board = game["board"]
    if player not in playing:
        raise HTTPException(403, "only the first two players make moves")
    if len(playing) < len(MARKS):
        raise HTTPException(409, "wait for a second player")
    if game["line"] or "." not in board:
        raise HTTPException(409, "the game is over")
    turn = (9 - board.count(".")) % len(MARKS)
    if player != playing[turn]:
        raise HTTPException(409, "it is not your turn")
    if board[cell] != ".":
        raise HTTPException(409, "the cell is taken")
    board = board[:cell] + MARKS[turn] + board[cell + 1 :]
    line = next((line for line in LINES if all(board[int(each)] == MARKS[turn] for each in line)), None)
    return game | {"board": board, "line": line}
