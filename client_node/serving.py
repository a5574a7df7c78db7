"""The serving side of a site, put together from its home."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from client_node.evaluate import Evaluation, HeldOut, evaluate
from client_node.home import SiteHome, SiteSettings
from client_node.inference import SiteTranscriber, transcriber_loader
from client_node.keys import trusted_coordinator
from client_node.model_store import ModelStore
from client_node.store import SiteStore
from privacy.store import open_engine


def open_model_store(home: SiteHome, settings: SiteSettings) -> ModelStore:
    """The site's releases. Before the site has joined nobody is trusted, so none can serve."""
    trusted = [trusted_coordinator(home)] if home.coordinator_key.exists() else []
    return ModelStore(home.releases, trusted, settings.base_sha256)


def open_transcriber(home: SiteHome, prompt_terms: Sequence[str] = ()) -> SiteTranscriber:
    """What transcribes at this site. Raises SiteError where there is no site."""
    settings = SiteSettings.load(home.settings)
    load = transcriber_loader(Path(settings.base_folder), settings.base_sha256, prompt_terms)
    return SiteTranscriber(open_model_store(home, settings), load)


def evaluate_site(home: SiteHome) -> Evaluation:
    """Base, prompted base and active release on the site's held-out recordings.

    The terms are those that the manifest names, over all recordings of consenting subjects.
    Raises EvaluationError where nothing is held out; ReleaseError and SignatureError as serving.
    """
    settings = SiteSettings.load(home.settings)
    engine = open_engine(home.database_url)
    recordings = SiteStore(engine).recordings()
    engine.dispose()
    terms = sorted({recording.term for recording in recordings if recording.term})
    held_out = [
        HeldOut(Path(recording.path), recording.text)
        for recording in recordings
        if recording.split == "heldout"
    ]
    folder, sha256 = Path(settings.base_folder), settings.base_sha256
    active = open_model_store(home, settings).active()
    return evaluate(
        transcriber_loader(folder, sha256),
        transcriber_loader(folder, sha256, terms) if terms else None,
        None if active is None else active.adapter,
        held_out,
        terms,
    )
