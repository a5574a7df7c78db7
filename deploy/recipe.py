"""Job requests from the default recipe, a file, and options, each over the one before."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from deploy.errors import CommandError


def default_recipe() -> dict[str, Any]:
    """The fields of the default job request."""
    return tomllib.loads(files("deploy").joinpath("recipe.toml").read_text(encoding="utf-8"))


def job_request(request: Path | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a request: defaults, then the file's (TOML or JSON), then options that are given.

    A target ε and a noise multiplier exclude each other, so whichever is given later replaces the
    other. Raises CommandError where the file cannot be read; the coordinator checks the values.
    """
    given = {name: value for name, value in options.items() if value is not None}
    fields = default_recipe()
    for layer in (_read(request) if request else {}, given):
        for name, other in (("epsilon", "noise_multiplier"), ("noise_multiplier", "epsilon")):
            if layer.get(name) is not None:
                fields.pop(other, None)
        if layer.get("privacy_mode") == "none":
            fields.pop("epsilon", None)
            fields.pop("noise_multiplier", None)
        for name, value in layer.items():
            nested = isinstance(value, Mapping) and isinstance(fields.get(name), Mapping)
            fields[name] = {**fields[name], **value} if nested else value
    return fields


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        fields = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        if not isinstance(fields, dict):
            raise TypeError("not an object")
    except (OSError, ValueError, TypeError) as error:
        raise CommandError(
            f"the job request {path} cannot be read: {error}",
            remedy="give a TOML or .json file; `auricle round start --help` names its fields",
            code="request-unreadable",
        ) from error
    return fields
