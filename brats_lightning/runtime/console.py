"""What a command shows on the terminal: tables, and progress bars for long work."""

import logging
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

Result = TypeVar("Result")

log = logging.getLogger(__name__)

_INTERVAL = 30.0  # seconds between two lines of progress in a log
_WIDTH = 160  # columns of output to a file or a pipe


def table_of(columns: Iterable[str], rows: Iterable[Iterable[object]], title: str | None = None) -> Table:
    """A table of rows of cells, each as it stands: brackets are no markup."""
    table = Table(*(Column(escape(name), overflow="fold") for name in columns), title=title and escape(title))
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    return table


def show(content: RenderableType) -> None:
    """Print a table, wide where the output is not a terminal, or a text as it stands: brackets are no markup."""
    console = Console(emoji=False)
    console = console if console.is_terminal else Console(emoji=False, width=_WIDTH)
    text = isinstance(content, str)
    console.print(content, markup=not text, soft_wrap=text)


def as_text(content: RenderableType) -> str:
    """What `show` prints, without colours."""
    console = Console(emoji=False, width=_WIDTH, no_color=True)
    with console.capture() as capture:
        console.print(content)
    return capture.get()


def progress_bar() -> Progress:
    """A progress bar of cases with the remaining time, on stderr; where that is no terminal, lines in the log."""
    return _CaseProgress()


def each_shown(what: str, results: Iterable[Result], total: int) -> Iterator[Result]:
    """The results of so many cases, one after the other, with a `progress_bar`."""
    with progress_bar() as bar:
        task = bar.add_task(what, total=total)
        for result in results:
            yield result
            bar.advance(task)


class _CaseProgress(Progress):
    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("cases"),
        )
        times = TimeElapsedColumn(), TimeRemainingColumn()
        # The time left follows from the pace of ten minutes: a case may take longer than rich's half.
        options: dict[str, Any] = {"speed_estimate_period": 600, "get_time": time.monotonic}
        super().__init__(*columns, *times, console=console, disable=not console.is_terminal, **options)
        self._next = time.monotonic() + _INTERVAL

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """So many more cases of a task are done."""
        super().advance(task_id, advance)
        now = time.monotonic()
        if self.disable and now >= self._next:
            self._next = now + _INTERVAL
            task = next(task for task in self.tasks if task.id == task_id)
            left = "" if task.time_remaining is None else f", {timedelta(seconds=task.time_remaining)} left"
            log.info("%s: %d of %d cases%s", task.description, task.completed, task.total, left)
