"""The serving side of a site, put together from its home."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from client_node.evaluate import Evaluation, HeldOut, Models, evaluate
from client_node.home import SiteHome, SiteSettings
from client_node.inference import SiteTranscriber, transcriber_loader
from client_node.keys import trusted_coordinator
from client_node.manifest import read_manifest
from client_node.model_store import ModelStore
from client_node.store import SiteStore
from model_core.adapter import load_adapter
from model_core.base import SpeechBase, load_base, rebased
from model_core.cached_decoder import Precision
from privacy.store import open_engine


def open_model_store(home: SiteHome, settings: SiteSettings) -> ModelStore:
    """The site's releases. Before the site has joined nobody is trusted, so none can serve."""
    trusted = [trusted_coordinator(home)] if home.coordinator_key.exists() else []
    return ModelStore(home.releases, trusted, settings.base_sha256)


def open_transcriber(
    home: SiteHome, prompt_terms: Sequence[str] = (), *, precision: Precision = "float32"
) -> SiteTranscriber:
    """What transcribes at this site. Raises SiteError where there is no site."""
    settings = SiteSettings.load(home.settings)
    load = transcriber_loader(
        Path(settings.base_folder), settings.base_sha256, prompt_terms, precision=precision
    )
    return SiteTranscriber(open_model_store(home, settings), load)


def served_base(home: SiteHome) -> tuple[SpeechBase, str | None]:
    """What serves at this site as one model, the active release merged in, and its name.

    Raises SiteError where there is no site; ReleaseError, SignatureError and WeightsError as
    serving does.
    """
    settings = SiteSettings.load(home.settings)
    base = load_base(Path(settings.base_folder), expected_sha256=settings.base_sha256)
    active = open_model_store(home, settings).active()
    if active is None:
        return base, None
    merged = load_adapter(base.model, active.adapter).merged()
    return rebased(base, merged), active.manifest.release


def evaluate_site(
    home: SiteHome, general: Path | None = None, *, release_only: bool = False
) -> Evaluation:
    """Base and active release, without and with the terms as prompt, on held-out recordings.

    The terms are those that the manifest names, over all recordings of consenting subjects.
    `general` is a manifest of other recordings, to see what else the release has changed.
    Raises EvaluationError where nothing is held out; ManifestError for `general`; ReleaseError and
    SignatureError as serving does.
    """
    settings = SiteSettings.load(home.settings)
    engine = open_engine(home.database_url)
    recordings = SiteStore(engine).recordings()
    engine.dispose()
    terms = sorted({term for recording in recordings for term in recording.terms})
    held_out = [
        HeldOut(Path(recording.path), recording.text)
        for recording in recordings
        if recording.split == "heldout"
    ]
    others = [HeldOut(row.audio, row.text) for row in read_manifest(general)] if general else []
    folder, sha256 = Path(settings.base_folder), settings.base_sha256
    active = open_model_store(home, settings).active()
    models = Models(
        plain=transcriber_loader(folder, sha256),
        prompted=transcriber_loader(folder, sha256, terms) if terms else None,
        adapter=None if active is None else active.adapter,
    )
    return evaluate(models, held_out, terms, others, release_only=release_only)
