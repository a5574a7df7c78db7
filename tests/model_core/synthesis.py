"""Speech for tests: eSpeak NG from the registry's wheel, through ctypes, one voice."""

from __future__ import annotations

import ctypes
import functools

import espeakng_loader
import numpy as np
import soxr
import torch
from torch import Tensor

_SYNCHRONOUS, _UTF8, _BY_CHARACTER = 2, 1, 1
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


@functools.cache
def _library() -> tuple[ctypes.CDLL, int]:
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = espeakng_loader.get_data_path().encode()
    return library, library.espeak_Initialize(_SYNCHRONOUS, 0, data, 0)


def say(text: str) -> Tensor:
    """The text spoken, 16 kHz mono float32."""
    library, rate_hz = _library()
    pieces: list[np.ndarray] = []

    def keep(samples, count, _events) -> int:
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = _CALLBACK(keep)
    library.espeak_SetSynthCallback(callback)
    library.espeak_SetVoiceByName(b"en-us")
    data = text.encode() + b"\0"
    library.espeak_Synth(data, len(data), 0, _BY_CHARACTER, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    samples = np.concatenate(pieces).astype(np.float32) / 32768
    return torch.from_numpy(soxr.resample(samples, rate_hz, 16_000))
