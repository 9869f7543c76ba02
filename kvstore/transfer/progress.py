"""Progress on a terminal, by tqdm. Where tqdm is not installed, or nobody looks, there is none."""

import sys
from types import TracebackType
from typing import Any, Self


class Progress:
    """A bar on stderr, of bytes where `total` is known, otherwise of documents; nothing if `is_shown` is false."""

    def __init__(self, doing: str, total: int | None, *, is_shown: bool) -> None:
        self.documents = 0
        self._is_of_bytes = total is not None
        self._bar: Any = None
        if is_shown:
            try:
                from tqdm import tqdm
            except ModuleNotFoundError:
                return
            tqdm.monitor_interval = 0  # no thread for it
            unit = {"unit": "B", "unit_scale": True, "unit_divisor": 1024} if self._is_of_bytes else {"unit": " documents"}
            self._bar = tqdm(desc=doing, total=total, file=sys.stderr, dynamic_ncols=True, **unit)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def go_on(self, documents: int, at_byte: int | None = None) -> None:
        """Count documents; the file has been read up to `at_byte`."""
        self.documents += documents
        if self._bar is None:
            return
        if self._is_of_bytes:
            self._bar.set_postfix_str(f"{self.documents:,} documents", refresh=False)
            self._bar.update((at_byte or 0) - self._bar.n)
        else:
            self._bar.update(documents)

    def say(self, line: str) -> None:
        """Print a line on stderr, above the bar."""
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.write(line, file=sys.stderr)
