"""The coordinator's home as the command line uses it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coordinator.home import CoordinatorHome
    from coordinator.release import Evaluate


def admin_address(root: Path) -> tuple[str, str]:
    """URL and bearer token of the admin listener. Raises CoordinatorError on a broken home."""
    from coordinator.home import CoordinatorHome

    home = CoordinatorHome(root)
    return f"http://127.0.0.1:{home.settings().admin_port}", home.admin_token()


def release_evaluator(home: CoordinatorHome) -> Evaluate | None:
    """What measures each release on the public test set that coordinator.toml names, if any.

    Raises CoordinatorError on a broken home; ManifestError where the test set cannot be read.
    """
    manifest = home.settings().evaluation_manifest
    if not manifest:
        return None
    from deploy.release_evaluation import evaluate_release
    from model_core.evaluation import read_manifest

    read_manifest(Path(manifest))
    return functools.partial(evaluate_release, Path(manifest))
