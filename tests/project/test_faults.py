"""The report of faults names tests that there are, and counts what they did."""

import ast
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.faults.report import FAULTS, PAGE, Seen, added, page, read, recorded

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
    report = ElementTree.fromstring(text)
    seen = [read(report, fault, 5) for fault in (first, second)]
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


def test_the_page_says_what_was_seen() -> None:
    """docs/faults.md is made of what the last rounds recorded."""
    assert PAGE.read_text("utf-8").partition("cores. ")[2] == page(recorded()).partition("cores. ")[2]
