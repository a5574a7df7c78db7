"""`auricle privacy audit`: claimed ε beside what an attacker can prove from one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.cli.output import Json, emit, epsilon_text, table
from deploy.errors import CommandError

if TYPE_CHECKING:
    from deploy.canary_run import Audit
    from model_core.base import SpeechBase

EXAMPLE = "Example: auricle privacy audit --epsilon 8 --rounds 20 --picture audit.png"
EXIT_REFUTED = 9
SHOWS = (
    "It shows what an attacker who chose these canaries and saw every update of this run can "
    "prove. A lower bound above the claimed ε proves a fault.",
    "It does not show that the claim holds. A bound far below the claim is the rule, as no attack "
    "is the worst there could be; the claim rests on the accountant and on the probes of each "
    "round. The interval holds only if scores are Gaussian.",
)


def audit(
    epsilon: Annotated[float, typer.Option(min=0.1, help="ε that the run shall claim.")] = 8.0,
    sampling_rate: Annotated[float, typer.Option(min=1e-4, max=1.0, help="q.")] = 0.25,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the run.")] = 20,
    canaries: Annotated[int, typer.Option(min=20, help="Canaries; half of them take part.")] = 500,
    subjects: Annotated[int, typer.Option(min=0, help="Invented speakers beside them.")] = 20,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapter.")] = 16,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999)] = 0.95,
    base: Annotated[
        Path | None, typer.Option(help="A prepared base; without it, the built-in nano base.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the canaries; never the noise.")] = 0,
    picture: Annotated[Path | None, typer.Option(help="Write the scores to this PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Run canaries through the real pipeline and bound ε from below. Exit status 9 when refuted."""
    import torch

    from deploy.canary_run import CanaryRun, attach_for_audit, audit_plan
    from privacy.accountant import noise_multiplier_for
    from privacy.random_source import SystemRandomSource

    if picture is not None:
        require_plots()
    speech = _load(base)
    sigma = noise_multiplier_for(epsilon, 1e-5, sampling_rate, rounds)
    adapter = attach_for_audit(speech, rank)
    vector_D = 0.05 * torch.randn(adapter.size, generator=torch.Generator().manual_seed(seed))
    adapter.load_vector(vector_D)
    plan = audit_plan(
        speech, adapter, sampling_rate=sampling_rate, noise_multiplier=sigma, rounds=rounds
    )
    run = CanaryRun(speech, adapter, plan, SystemRandomSource(), subjects=subjects, seed=seed)
    found = run.audit(canaries, confidence)
    if picture is not None:
        draw(found, picture)
    emit(fields(found, sigma), _table(found), *SHOWS, as_json=as_json)
    if found.refuted:
        raise typer.Exit(EXIT_REFUTED)


def _load(folder: Path | None) -> SpeechBase:
    if folder is None:
        from model_core.nano import nano_base

        return nano_base()
    from model_core.base import load_base

    return load_base(folder, None)


def fields(found: Audit, sigma: float) -> dict[str, Any]:
    """An audit as one JSON object."""
    return {
        "claimed_epsilon": found.claimed,
        "delta": found.delta,
        "noise_multiplier": sigma,
        "confidence": found.confidence,
        "lower_bound": found.bound.epsilon,
        "guesses": found.bound.guesses,
        "correct": found.bound.correct,
        "gaussian_mu": found.interval.mu,
        "gaussian_interval": [found.interval.low, found.interval.high],
        "canaries": len(found.scores_M),
        "included": int(found.included_M.sum()),
        "refuted": found.refuted,
        "shows": list(SHOWS),
    }


def _table(found: Audit) -> Any:
    bound, interval = found.bound, found.interval
    rows = [
        ("claimed by the accountant", epsilon_text(found.claimed), f"at δ = {found.delta:g}"),
        (
            "at least, whatever the mechanism",
            epsilon_text(bound.epsilon),
            f"{bound.correct} of {bound.guesses} guesses right",
        ),
        (
            "if scores are Gaussian",
            f"{interval.low:.2f} to {interval.high:.2f}",
            f"means {interval.mu:.2f} standard deviations apart",
        ),
    ]
    title = f"ε of this run, with {found.confidence:.0%} confidence"
    return table(title, ("", "ε", ""), rows)


def require_plots() -> None:
    """Raise CommandError ("plots-missing") where matplotlib is not installed."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise CommandError(
            "a picture needs matplotlib, which is not installed",
            remedy="pip install 'auricle[plots]'",
            code="plots-missing",
        )


def draw(found: Audit, path: Path) -> None:
    """Histograms of the scores of canaries that took part and of those that did not, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    sides = [found.scores_M[~found.included_M], found.scores_M[found.included_M]]
    axes.hist(
        sides, bins=40, label=["not in the run", "in the run"], histtype="stepfilled", alpha=0.6
    )
    axes.set_xlabel("auditor's score of a canary")
    axes.set_ylabel("canaries")
    axes.set_title(
        f"ε claimed {found.claimed:.2f}, at least {found.bound.epsilon:.2f}, "
        f"if Gaussian {found.interval.low:.2f} to {found.interval.high:.2f}"
    )
    axes.legend()
    figure.savefig(path, format="png", dpi=120)


def register(app: typer.Typer) -> None:
    """Add `audit` to the `auricle privacy` commands."""
    app.command("audit", epilog=EXAMPLE)(audit)
