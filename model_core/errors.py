"""The errors of the speech room.

`model_core` stands alone, so it has its own base class with the attributes that the other rooms'
errors carry: `code` (stable, safe to log and to send), `problem` and `remedy` (for the person at
this machine; they may name local files and never leave it), and `exit_code` for the command line.
"""

from __future__ import annotations


class ModelCoreError(Exception):
    """Base of every error that the speech room raises on purpose.

    Attributes:
        code: stable kebab-case identifier; safe to log and to send.
        problem: what happened and why. May name local files: never sent off site.
        remedy: what to do next, in the imperative.
        exit_code: process exit status used by the command line.
    """

    code = "model-internal"
    exit_code = 1

    def __init__(self, problem: str, *, remedy: str, code: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy
        if code is not None:
            self.code = code


class WeightsError(ModelCoreError):
    """A checkpoint or prepared base is missing, malformed, or not the one expected.

    Codes: `weights-missing`, `weights-malformed`, `weights-checksum`, `base-missing`,
    `base-malformed`, `base-checksum`, `distil-mismatch`.
    """

    code = "weights-malformed"
    exit_code = 20


class AdapterError(ModelCoreError):
    """An adapter does not fit the base model, its basis, or its own declared tensors.

    Codes: `adapter-target`, `adapter-basis`, `adapter-shape`, `adapter-malformed`.
    """

    code = "adapter-malformed"
    exit_code = 21


class AudioError(ModelCoreError):
    """A recording cannot be used.

    Codes: `audio-missing`, `audio-empty`, `audio-unreadable`, `audio-too-long`.
    """

    code = "audio-unreadable"
    exit_code = 22


class TextError(ModelCoreError):
    """A transcript, prompt or language cannot be used.

    Codes: `text-empty`, `text-too-long`, `text-language`.
    """

    code = "text-empty"
    exit_code = 23


class ManifestError(ModelCoreError):
    """A manifest of recordings to evaluate on is wrong.

    Codes: `manifest-missing`, `manifest-format`.
    """

    code = "manifest-format"
    exit_code = 31


class ExportError(ModelCoreError):
    """A model for ONNX Runtime cannot be made or is not the one expected.

    Codes: `onnx-missing`, `onnx-folder`, `onnx-malformed`, `onnx-checksum`.
    """

    code = "onnx-malformed"
    exit_code = 24
