"""Draws the picture of the game in its README: `python -m tests.pages.game_picture`."""

import shutil
from pathlib import Path

from tests.support.browser import Browser, Driver
from tests.support.games import Game, start_uvicorn
from tests.support.stores import make_directory, start_redis

PICTURE = Path(__file__).parents[2] / "examples" / "game" / "game.png"
SIZE = (960, 640)
MOVES = "402"  # X, O, X


def draw(browser: Browser, at: Game, to: Path) -> None:
    """Play a game as Ada, and write what she sees to a file."""
    browser.resize(*SIZE)
    browser.go(f"{at.url}/")
    name = "dark-red-deer-42"
    at.store.put(f"/games/{name}", {"made": 0, "players": [], "board": "." * 9, "line": None}, ttl="1d")
    browser.go(f"{at.url}/{name}")
    browser.type("#as", "Ada")
    browser.click("#join button")
    browser.wait_for("you", "#players")
    grace, *_ = [at.player(name, each) for each in ("Grace", "Alan")]
    for index, cell in enumerate(MOVES):
        if index % 2:
            assert at.move(name, int(cell), grace).status == 204
        else:
            browser.click(f"#board button:nth-child({int(cell) + 1})")
        browser.wait(
            "[...document.querySelectorAll('#board button')].filter(each => each.textContent).length > arguments[0]", index
        )
    browser.wait_for("Grace's turn", "#state")
    browser.run("document.activeElement.blur()")
    browser.screenshot(to)


def main() -> None:
    """Draw it."""
    directory = make_directory()
    redis = start_redis(directory)
    driver = Driver(directory)
    at = start_uvicorn(directory, redis.url)
    try:
        draw(driver.open(), at, PICTURE)
    finally:
        at.served.kill()
        driver.close()
        redis.stop()
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
