"""Pictures of a privacy plan: by plotext in the terminal, by matplotlib as PNG (extra `plots`)."""

from __future__ import annotations

import itertools
from pathlib import Path

from deploy.errors import CommandError
from privacy.planner import LEARNS_A_PART_AT, LEARNS_AT, Option, PlanAnswer

_COLUMNS, _ROWS = 76, 16
_INCHES = (11.0, 4.5)
_DOTS_PER_INCH = 120


def terminal_plot(answer: PlanAnswer) -> str:
    """ε over rounds, and what the alternatives could learn, as lines of text.

    Where plotext is not installed, a line that says how to get the pictures.
    """
    try:
        import plotext
    except ImportError:
        return "No pictures here: pip install 'auricle[plots]' draws them."
    points = [point.round for point in answer.curve]
    plotext.clear_figure()
    plotext.plot_size(_COLUMNS, _ROWS)
    plotext.plot(points, [point.epsilon_loc for point in answer.curve], label="ε_loc")
    plotext.plot(points, [point.epsilon_sec for point in answer.curve], label="ε_sec", marker="dot")
    plotext.title("ε spent")
    plotext.xlabel("round")
    curve = plotext.build()
    plotext.clear_figure()
    plotext.plot_size(_COLUMNS, _ROWS)
    for marker, (rounds, options) in zip("abcdefgh", _by_rounds(answer), strict=False):
        plotext.plot(
            [option.sampling_rate for option in options],
            [option.snr_job for option in options],
            label=f"{rounds} rounds",
            marker=marker,
        )
    plotext.title(f"signal to noise of the job; from {LEARNS_AT:g} it can learn")
    plotext.xlabel("sampling rate")
    alternatives = plotext.build()
    plotext.clear_figure()
    return "\n".join(plotext.uncolorize(picture) for picture in (curve, alternatives))


def save_plot(answer: PlanAnswer, file: Path) -> None:
    """The same as a PNG file. Raises CommandError "plots-missing" or "plot-unwritable"."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CommandError(
            "matplotlib, which draws PNG files, is not installed",
            remedy="pip install 'auricle[plots]', or leave out --plot",
            code="plots-missing",
        ) from error
    figure = Figure(figsize=_INCHES, layout="constrained")
    left, right = figure.subplots(1, 2)
    rounds = [point.round for point in answer.curve]
    left.plot(rounds, [point.epsilon_loc for point in answer.curve], label="ε_loc")
    left.plot(rounds, [point.epsilon_sec for point in answer.curve], "--", label="ε_sec")
    left.set(title="ε spent", xlabel="round", ylabel="ε", ylim=(0, None))
    left.legend()
    for count, options in _by_rounds(answer):
        rates = [option.sampling_rate for option in options]
        right.plot(rates, [o.snr_job for o in options], "o-", label=f"{count} rounds")
    for limit, words in ((LEARNS_AT, "can learn"), (LEARNS_A_PART_AT, "may learn a part")):
        right.axhline(limit, color="grey", linewidth=0.8)
        right.annotate(
            words, (1, limit), xycoords=("axes fraction", "data"), ha="right", va="bottom"
        )
    right.set(
        title=f"Alternatives at ε_loc ≤ {answer.question.epsilon:g}",
        xlabel="sampling rate",
        ylabel="signal to noise of the job",
        xscale="log",
    )
    rates = [option.sampling_rate for option in _by_rounds(answer)[0][1]]
    right.set_xticks(rates, [f"{rate:g}" for rate in rates])
    right.minorticks_off()
    right.legend()
    try:
        figure.savefig(file, format="png", dpi=_DOTS_PER_INCH)
    except OSError as error:
        raise CommandError(
            f"the picture {file} cannot be written: {error.strerror}",
            remedy="give a file in a folder that exists and is yours",
            code="plot-unwritable",
        ) from error


def _by_rounds(answer: PlanAnswer) -> list[tuple[int, list[Option]]]:
    options = sorted(
        (answer.chosen, *answer.alternatives), key=lambda one: (one.rounds, one.sampling_rate)
    )
    grouped = itertools.groupby(options, key=lambda option: option.rounds)
    return [(rounds, list(group)) for rounds, group in grouped]
