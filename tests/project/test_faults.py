"""The report of faults names tests that there are, and counts what they did."""

import ast
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.faults import report
from tests.faults.report import FAULTS, PAGE, Fault, Seen, added, page, read, recorded

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("test", sorted({test for fault in FAULTS for test in fault.tests}))
def test_a_test_of_the_report_is_there(test: str) -> None:
    """By file and name."""
    file, _, name = test.partition("::")
    tree = ast.parse((TESTS / file).read_text("utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_what_the_report_says() -> None:
    """Runs, what was checked, and what was broken, with the seed that does it again; a fault that did not run is broken."""
    first, second = FAULTS[0], FAULTS[1]
    file, _, name = first.tests[0].partition(".py::")
    at = "tests." + file.replace("/", ".")
    case = f'testcase classname="{at}" name="{name}'
    most = '<property name="ms at most for one" value="9"/><property name="lost jobs" value="0"/>'
    counted = f'<properties><property name="jobs" value="7"/>{most}</properties>'
    failed = '<failure message="it took 7 s&#10;and more"/>'
    text = f'<testsuite><{case}[a]">{counted}</testcase><{case}[b]">{failed}</testcase></testsuite>'
    root = ElementTree.fromstring(text)
    seen = [read(root, fault, 5) for fault in (first, second)]
    assert seen[0] == Seen(
        [5],
        seen[0].date,
        Counter(passed=1, failed=1),
        Counter({"jobs": 7, "ms at most for one": 9, "lost jobs": 0}),
        [f"{at[6:]}.{name}[b] with seed 5: it took 7 s"],
    )
    assert len(seen[1].broken) == 1
    twice = added(seen[0], seen[0]._replace(seeds=[6]))
    text = page({first.done: twice, second.done: seen[1]})
    assert f"| {first.promised} | 2 | 4 runs, 14 jobs, 0 lost jobs, 9 ms at most for one | broken 2 times |" in text
    assert f"| {second.promised} | 1 | 0 runs | broken once |" in text
    skipped = ElementTree.fromstring(f'<testsuite><{case}[a]"><skipped/></testcase></testsuite>')
    assert read(skipped, first, 5).broken == [f"{first.tests[0]} did not run with seed 5"]


Make = Callable[..., list[tuple[int, tuple[Fault, ...]]]]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Make:
    """Runs `make faults` with these words, in a place of its own: the seed and the faults of each round that it would run."""
    asked: list[tuple[int, tuple[Fault, ...]]] = []

    def run_round(seed: int, faults: tuple[Fault, ...], _: int) -> list[Seen]:
        asked.append((seed, faults))
        return [Seen([seed], "2026-11-22", Counter(passed=1), Counter(), []) for _ in faults]

    def run(*words: str) -> list[tuple[int, tuple[Fault, ...]]]:
        asked.clear()
        monkeypatch.setattr("sys.argv", ["report", *words])
        with pytest.raises(SystemExit) as ended:
            report.main()
        assert bool(ended.value.code) != bool(asked)
        return list(asked)

    monkeypatch.setattr(report, "run_round", run_round)
    monkeypatch.setattr(report, "RECORD", tmp_path / "seen.json")
    monkeypatch.setattr(report, "PAGE", tmp_path / "faults.md")
    return run


def test_more_rounds_have_seeds_of_their_own(make: Make) -> None:
    """They come next, and a fault that had its round with a seed has no second one: it would draw the same."""
    clock = tuple(fault for fault in FAULTS if "The clock of Redis" in fault.done)
    others = tuple(fault for fault in FAULTS if fault not in clock)
    assert make("--rounds", "2") == [(1, FAULTS), (2, FAULTS)]
    assert make("--rounds", "1", "--more", "--only", "the clock of redis") == [(3, clock)]
    assert make("--rounds", "2", "--more", "--seed", "2") == [(3, others)]
    assert [seen.seeds for seen in recorded().values()] == [[1, 2, 3]] * len(FAULTS)


def test_a_fault_that_there_is_not(make: Make) -> None:
    """No round: without the name of a test, pytest would run all of them."""
    assert make("--only", "no such fault") == []


def test_the_page_says_what_was_seen() -> None:
    """docs/faults.md is made of what the last rounds recorded."""
    assert PAGE.read_text("utf-8").partition("cores. ")[2] == page(recorded()).partition("cores. ")[2]


def test_operations_agrees_with_the_report() -> None:
    """docs/operations.md says how long a response took at most in a failover, and how many writes were lost."""
    text = (PAGE.parent / "operations.md").read_text("utf-8")
    at_most_s = float(re.findall(r"within 6 s, ([\d.]+) at most in the tests", text)[0])
    lost, of = (int(each.replace(",", "")) for each in re.findall(r"some (\d+) of ([\d,]+), sent while", text)[0])
    seen = [recorded()[fault.done] for fault in FAULTS if any("test_failover.py" in test for test in fault.tests)]
    slowest_ms = max(each.counts["ms at most until a response"] for each in seen)
    assert slowest_ms / 1000 <= at_most_s
    share = seen[0].counts["lost writes"] / seen[0].counts["acknowledged writes"]
    assert lost / of == pytest.approx(share, rel=0.25)
