"""What the demo shows: stages and rounds as they go, and the last screen."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from deploy.demo.result import DemoResult, Score, SiteResult


@dataclasses.dataclass(frozen=True)
class RoundView:
    """One look at a running job: what the progress line says.

    `epsilon_loc` is None for a job without noise, which guarantees nothing.
    """

    round: int
    rounds: int
    sites_online: int
    updates: int
    epsilon_loc: float | None
    epsilon_cap: float


class Screen:
    """Writes progress to `console`; keeps the seconds of every stage."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self._clock = clock
        self._started_s = clock()
        self.seconds_by_stage: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """Seconds since the screen was made."""
        return self._clock() - self._started_s

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Name a stage, time it, and print one line when it is done."""
        begun_s = self._clock()
        if self.console.is_terminal:
            with self.console.status(escape(title)):
                yield
        else:
            self.console.print(f"[dim]…[/] {escape(title)}")
            yield
        self._done(title, begun_s)

    @contextmanager
    def counted(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """A stage that counts: a live bar on a terminal, and one line when it is done."""
        begun_s = self._clock()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        progress = Progress(
            *columns,
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        quarter = 0

        def show(done: int) -> None:
            nonlocal quarter
            progress.update(task, completed=done)
            if not self.console.is_terminal and 4 * done // total > quarter:
                quarter = 4 * done // total
                self.console.print(f"  [dim]{escape(title)}: {done} of {total}[/]")

        with progress:
            task = progress.add_task(escape(title), total=total)
            yield show
        self._done(title, begun_s, f"{total} ")

    def _done(self, title: str, begun_s: float, note: str = "") -> None:
        took_s = self._clock() - begun_s
        self.seconds_by_stage[title] = round(took_s, 1)
        self.console.print(f"[green]✓[/] {escape(title)} [dim]({note}in {took_s:.1f} s)[/]")

    @contextmanager
    def rounds(self, title: str, total: int) -> Iterator[Callable[[RoundView], None]]:
        """A live bar over rounds: sites, ε spent of the cap, time left."""
        begun_s = self._clock()
        progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            refresh_per_second=4,
            disable=not self.console.is_terminal,
        )
        last_round = -1

        with progress:
            task = progress.add_task(title, total=total, note="starting")

            def show(view: RoundView) -> None:
                nonlocal last_round
                spent = (
                    "no guarantee"
                    if view.epsilon_loc is None
                    else f"ε {view.epsilon_loc:.2f} of {view.epsilon_cap:.2f}"
                )
                note = f"sites {view.sites_online}  updates {view.updates}  {spent}"
                progress.update(task, completed=view.round, note=note)
                if not self.console.is_terminal and view.round != last_round:
                    took_s = self._clock() - begun_s
                    left_s = took_s / view.round * (total - view.round) if view.round else 0.0
                    self.console.print(
                        f"  round {view.round}/{total}  {note}  {took_s:.0f} s, {left_s:.0f} s left"
                    )
                last_round = view.round

            yield show
        self._done(title, begun_s, f"{total} rounds ")


_ROWS: tuple[tuple[str, Callable[[SiteResult], str]], ...] = (
    ("terms right: base", lambda s: _percent(s.before.terms)),
    ("  base, terms as prompt", lambda s: _terms(s.prompted)),
    ("  private release", lambda s: _terms(s.after)),
    ("  private, terms as prompt", lambda s: _terms(s.after_prompted)),
    ("  same training without noise", lambda s: _terms(s.noiseless)),
    ("word error rate: base", lambda s: _percent(s.before.wer)),
    ("  base, terms as prompt", lambda s: _wer(s.prompted)),
    ("  private release", lambda s: _percent(s.after.wer)),
    ("  private, terms as prompt", lambda s: _wer(s.after_prompted)),
    ("  same training without noise", lambda s: _wer(s.noiseless)),
    ("general speech WER: base", lambda s: _percent(s.general_before)),
    ("  private release", lambda s: _percent(s.general_after)),
    ("ε_loc spent of cap", lambda s: f"{s.epsilon_loc:.2f} of {s.epsilon_cap:.2f}"),
    ("ε_sec", lambda s: f"{s.epsilon_sec:.2f}"),
    ("left the site", lambda s: f"{s.bytes_sent / 1e6:.2f} MB"),
    ("time in rounds", lambda s: f"{s.seconds:.0f} s"),
)


def result_table(result: DemoResult) -> Table:
    """One column a site: quality on held-out speakers and sentences, spend, bytes, seconds."""
    table = Table(title="Held-out speakers and sentences, never trained on", title_justify="left")
    table.add_column("", no_wrap=True)
    for site in result.sites:
        table.add_column(site.name, justify="right")
    for heading, show in _ROWS:
        shown = [show(site) for site in result.sites]
        if set(shown) != {"-"}:
            table.add_row(heading, *shown)
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _terms(score: Score | None) -> str:
    return _percent(score.terms if score else None)


def _wer(score: Score | None) -> str:
    return _percent(score.wer if score else None)


def last_screen(result: DemoResult) -> tuple[RenderableType, ...]:
    """The table, what it means, where things lie, and what to try next."""
    first = result.sites[0]
    home = f"{Path(result.ledger).parent}/sites/{first.name}"
    share = result.noiseless_share
    priced = (
        f"Private training won {100 * share:.0f} % of what the same job wins without noise."
        if share is not None
        else "No noiseless comparison to set beside it."
    )
    return (
        result_table(result),
        priced,
        f"ε_loc is what one speaker has spent at most against anyone, the coordinator included "
        f"(δ = {result.delta:g}). ε_sec is what readers of the release alone can learn if "
        f"{result.honest_sites} sites are honest; without secure aggregation it does not hold "
        "against the coordinator.",
        f"Release {result.release} in {result.release_folder}",
        f"Ledgers {'verified' if result.ledger_verified else 'DO NOT VERIFY'}: "
        f"{result.ledger} and each site's home; receipts in each site's receipts/",
        f"{result.seconds:.0f} seconds in all. Try next:",
        f"  auricle transcribe FILE --home {home}",
        f"  auricle ledger verify --home {result.ledger}",
        f"  auricle site serve --home {home}",
    )
