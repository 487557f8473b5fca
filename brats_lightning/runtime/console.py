"""What a command shows on the terminal: tables, and progress bars for long work."""

from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

_WIDTH = 160  # columns of output to a file or a pipe


def table_of(columns: Iterable[str], rows: Iterable[Iterable[object]], title: str | None = None) -> Table:
    """A table of rows of cells, each as it stands: brackets are no markup."""
    table = Table(*(Column(escape(name), overflow="fold") for name in columns), title=title and escape(title))
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    return table


def show(content: RenderableType) -> None:
    """Print a table or a text; wide where the output is not a terminal."""
    console = Console()
    (console if console.is_terminal else Console(width=_WIDTH)).print(content)


def as_text(content: RenderableType) -> str:
    """What `show` prints, without colours."""
    console = Console(width=_WIDTH, no_color=True)
    with console.capture() as capture:
        console.print(content)
    return capture.get()


def progress_bar() -> Progress:
    """A progress bar of cases with the remaining time, on stderr if that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("cases"))
    time = TimeElapsedColumn(), TimeRemainingColumn()
    return Progress(*columns, *time, console=console, disable=not console.is_terminal)
