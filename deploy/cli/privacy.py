"""`auricle privacy`: what a privacy budget buys, before any data is seen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.output import Json, emit, table

if TYPE_CHECKING:
    from privacy.planner import Option, PlanAnswer

app = typer.Typer(help="Privacy budgets: what they buy and what was claimed.", no_args_is_help=True)

_EXAMPLE = "Example: auricle privacy plan --subjects 800 --epsilon 4 --rounds 200 --plot plan.png"
_COLUMNS = ("q", "Rounds", "σ", "Lot", "ε_loc", "ε_sec", "SNR", "SNR, job", "Learns")
_LEARNS = {"can-learn": "yes", "may-learn-a-part": "in part", "cannot-learn": "no"}


@app.callback()
def options() -> None:
    """Privacy budgets: what they buy and what was claimed."""


@app.command(epilog=_EXAMPLE)
def plan(
    subjects: Annotated[int, typer.Option(help="Subjects of one site, N.")],
    epsilon: Annotated[float, typer.Option(help="ε_loc that the whole job may cost.")],
    rounds: Annotated[int, typer.Option(help="Rounds, T.")],
    delta: Annotated[float, typer.Option(help="δ.")] = 1e-5,
    sites: Annotated[int, typer.Option(help="Sites taking part, n.")] = 1,
    honest: Annotated[
        int | None, typer.Option(help="Honest sites h for ε_sec; without it, all but one.")
    ] = None,
    adapter_size: Annotated[int, typer.Option(help="Trained numbers of the adapter, D.")] = 3584,
    sampling_rate: Annotated[
        float | None, typer.Option(help="q; without it, the planner chooses.")
    ] = None,
    clipping_norm: Annotated[
        float | None, typer.Option(help="C, to state the noise in the gradient's own unit.")
    ] = None,
    replace_one: Annotated[
        bool, typer.Option("--replace-one", help="Neighbours replace a subject, not add one.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Write the pictures to this PNG file.")] = None,
    as_json: Json = False,
) -> None:
    """Noise, cohort and ε of a job, whether it can learn, and the alternatives."""
    from deploy.privacy_plots import save_plot
    from privacy.accountant import ADD_OR_REMOVE_ONE, REPLACE_ONE
    from privacy.planner import PlanQuestion, plan_privacy

    question = PlanQuestion(
        subjects=subjects,
        epsilon=epsilon,
        delta=delta,
        rounds=rounds,
        sites=sites,
        honest_sites=honest,
        adapter_size=adapter_size,
        sampling_rate=sampling_rate,
        adjacency=REPLACE_ONE if replace_one else ADD_OR_REMOVE_ONE,
    )
    answer = plan_privacy(question)
    if plot is not None:
        save_plot(answer, plot)
    _show(answer, clipping_norm, plot, as_json=as_json)


def _show(
    answer: PlanAnswer, clipping_norm: float | None, plot: Path | None, *, as_json: bool
) -> None:
    from deploy.privacy_plots import terminal_plot
    from privacy.planner import IN_WORDS

    words = IN_WORDS[answer.chosen.verdict]
    noise = clipping_norm and clipping_norm * answer.chosen.noise_multiplier
    fields = {"noise_standard_deviation": noise, "in_words": words, "plot": plot}
    emit(
        {**dataclasses.asdict(answer), **fields},
        table("The plan", _COLUMNS, [_row(answer.chosen)]),
        *_sentences(answer, noise),
        words,
        terminal_plot(answer),
        table("Alternatives at the same ε", _COLUMNS, [_row(one) for one in answer.alternatives]),
        "SNR = √n·q·N / (σ·√D) a round, times √T for the job: at most this; measured, a fifth to "
        "a third of it.",
        as_json=as_json,
    )


def _sentences(answer: PlanAnswer, noise: float | None) -> list[str]:
    said = [
        f"One round alone costs ε = {answer.epsilon_first_round:.3g}; over the job a round costs "
        f"{answer.epsilon_per_round:.3g}, as rounds are composed and not added.",
        "ε_sec holds for readers of the release; against the coordinator only ε_loc does.",
    ]
    if noise is not None:
        said.append(f"The noise on each number of a site's sum has standard deviation {noise:.4g}.")
    return said


def _row(option: Option) -> tuple[str, ...]:
    return (
        f"{option.sampling_rate:g}",
        str(option.rounds),
        f"{option.noise_multiplier:.3f}",
        f"{option.expected_lot:g}",
        f"{option.epsilon_loc:.2f}",
        f"{option.epsilon_sec:.2f}",
        f"{option.snr_round:.2f}",
        f"{option.snr_job:.1f}",
        _LEARNS[option.verdict],
    )
