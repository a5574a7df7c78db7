"""Synthetic speakers: eSpeak NG through ctypes, from the registry's `espeakng-loader` wheel.

The wheel carries the shared library and its voice data, so no system package is needed. The library
keeps global state and calls back while it synthesises: one `Espeak` a process, one thread.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from privacy.errors import AuricleError

RATE_HZ = 22_050  # what libespeak-ng renders
# From speak_lib.h of eSpeak NG 1.52.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_CHARS_UTF8 = 1
_POS_CHARACTER = 1
_PARAMETERS = {"speed": 1, "volume": 2, "pitch": 3, "pitch_range": 4}
_VOLUME = 90
_FULL_SCALE = 32_768.0
_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class SynthesisError(AuricleError):
    """eSpeak NG could not start or speak."""

    code = "synthesis-failed"
    exit_code = 61


@dataclasses.dataclass(frozen=True)
class Voice:
    """One synthetic speaker: a language voice, a timbre variant and a manner of speaking.

    Attributes:
        language: eSpeak voice, such as "en-us" or "en-gb-x-rp".
        variant: eSpeak variant, such as "m3" or "steph".
        speed: words a minute.
        pitch: 0 to 99.
        pitch_range: liveliness of intonation, 0 to 99.
    """

    language: str
    variant: str
    speed: int
    pitch: int
    pitch_range: int


class Espeak:
    """A synthesiser; make one in a process."""

    def __init__(self) -> None:
        """Load and start the library. Raises SynthesisError."""
        try:
            import espeakng_loader

            self._library = ctypes.CDLL(espeakng_loader.get_library_path())
            data_path = espeakng_loader.get_data_path()
        except (ImportError, OSError) as error:
            raise SynthesisError(
                f"eSpeak NG cannot be loaded: {error}",
                remedy="install the demo's extras: pip install 'auricle[demo]'",
            ) from error
        self._declare()
        rate_hz = self._library.espeak_Initialize(
            _AUDIO_OUTPUT_SYNCHRONOUS, 0, data_path.encode(), 0
        )
        if rate_hz != RATE_HZ:
            raise SynthesisError(
                f"eSpeak NG started with sample rate {rate_hz}, expected {RATE_HZ}",
                remedy="install the tested version: pip install espeakng-loader==0.2.4",
            )
        self._pieces: list[NDArray[np.int16]] = []
        self._callback = _Callback(self._collect)  # C keeps only the pointer, so we keep the object
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, text: str, voice: Voice) -> NDArray[np.float32]:
        """Samples [N] in [-1, 1] at `RATE_HZ`. Raises SynthesisError for an unknown voice."""
        name = f"{voice.language}+{voice.variant}"
        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise SynthesisError(
                f"eSpeak NG has no voice {name}", remedy="choose one of the corpus's voices"
            )
        # A variant may set its own manner, so ours is set after it.
        for parameter, number in _PARAMETERS.items():
            value = _VOLUME if parameter == "volume" else getattr(voice, parameter)
            self._library.espeak_SetParameter(number, value, 0)
        self._pieces.clear()
        data = text.encode() + b"\0"
        status = self._library.espeak_Synth(
            data, len(data), 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None
        )
        if status != 0 or not self._pieces:
            raise SynthesisError(
                f"eSpeak NG gave no speech with voice {name} (status {status})",
                remedy="try another voice",
            )
        return np.concatenate(self._pieces).astype(np.float32) / np.float32(_FULL_SCALE)

    def _declare(self) -> None:
        library = self._library
        library.espeak_Initialize.argtypes = [
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_int,
        ]
        library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
        library.espeak_SetParameter.argtypes = [ctypes.c_int] * 3
        library.espeak_SetSynthCallback.argtypes = [_Callback]
        library.espeak_Synth.argtypes = [
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_uint,
            ctypes.POINTER(ctypes.c_uint),
            ctypes.c_void_p,
        ]

    def _collect(self, samples: Sequence[int], count: int, _events: object) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0
