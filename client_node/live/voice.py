"""Voice activity: where speech begins and ends in a stream.

Silero VAD (Silero Team 2024, version 6, MIT licence, 1.3 MB) judges frames of 32 ms; its weights
come inside the pinned wheel `silero-vad` and run in ONNX Runtime. One network serves every stream,
whose state is 1 KB.

Shape suffixes: N samples, K samples of one frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib.resources import as_file, files
from typing import Literal

import numpy as np

from client_node.live.pcm import RATE_HZ

FRAME_SAMPLES = 512
FRAME_S = FRAME_SAMPLES / RATE_HZ
_CONTEXT_SAMPLES = 64
_STATE_SHAPE = (2, 1, 128)
_WEIGHTS = "silero_vad_16k_op15.onnx"

Network = Callable[[np.ndarray, np.ndarray], tuple[float, np.ndarray]]
"""(context and frame [64 + 512], state [2, 1, 128]) → probability of speech, next state."""


def silero_network() -> Network:
    """Load the network. Threads may share it; it computes on the caller's thread alone."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with as_file(files("silero_vad").joinpath("data", _WEIGHTS)) as path:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    rate = np.array(RATE_HZ)

    def judge(framed: np.ndarray, state: np.ndarray) -> tuple[float, np.ndarray]:
        output, after = session.run(None, {"input": framed[None], "state": state, "sr": rate})
        return float(output[0, 0]), after

    return judge


@dataclasses.dataclass(frozen=True)
class VoiceSettings:
    """When a sound counts as speech.

    Attributes:
        threshold: probability from which a frame is speech.
        release: probability below which a frame of running speech is a pause.
        min_speech_frames: frames of speech in a row before speech is believed (32 ms each). The
            network takes the onset of a tone for speech for up to four.
        end_silence_s: seconds of pause that end an utterance.
    """

    threshold: float = 0.5
    release: float = 0.35
    min_speech_frames: int = 5
    end_silence_s: float = 0.19


Change = Literal["start", "pause", "resume", "end"]


@dataclasses.dataclass(frozen=True)
class Turn:
    """A change of voice activity, at a sample of the stream.

    `at` is the first sample of speech for "start", the first of the pause for "pause" and "end",
    and the first of speech again for "resume". `known_at` is how far had been heard by then.
    """

    change: Change
    at: int
    known_at: int


class VoiceActivity:
    """One stream's voice activity. A pause is told at its first frame, its end when it lasts."""

    def __init__(self, network: Network, settings: VoiceSettings) -> None:
        """Nothing is heard yet."""
        self._network, self._settings = network, settings
        self._end_samples = int(settings.end_silence_s * RATE_HZ)
        self._state = np.zeros(_STATE_SHAPE, np.float32)
        self._context = np.zeros(_CONTEXT_SAMPLES, np.float32)
        self._rest_N = np.zeros(0, np.float32)
        self._heard = 0
        self._speech_frames = 0
        self._speaking = False
        self._pause_at: int | None = None

    @property
    def speaking(self) -> bool:
        """Whether an utterance is open, a pause within it included."""
        return self._speaking

    def push(self, samples_N: np.ndarray) -> list[Turn]:
        """Hear the next samples [N] float32 at 16 kHz; returns what changed."""
        waiting_N = np.concatenate([self._rest_N, samples_N])
        whole = len(waiting_N) // FRAME_SAMPLES * FRAME_SAMPLES
        self._rest_N = waiting_N[whole:]
        turns: list[Turn] = []
        for frame_K in waiting_N[:whole].reshape(-1, FRAME_SAMPLES):
            framed = np.concatenate([self._context, frame_K])
            probability, self._state = self._network(framed, self._state)
            self._context = frame_K[-_CONTEXT_SAMPLES:]
            begun = self._heard
            self._heard += FRAME_SAMPLES
            turns += self._judge(probability, begun)
        return turns

    def end_now(self) -> list[Turn]:
        """End an open utterance here: the stream is over, or the utterance too long."""
        if not self._speaking:
            return []
        at = self._heard if self._pause_at is None else self._pause_at
        return [self._end(at)]

    def _judge(self, probability: float, begun: int) -> list[Turn]:
        """Turns of the frame that begins at sample `begun`."""
        if not self._speaking:
            return self._listen(probability)
        if probability < self._settings.release:
            return self._pause(begun)
        if self._pause_at is not None and probability >= self._settings.threshold:
            self._pause_at = None
            return [Turn("resume", begun, self._heard)]
        return []

    def _listen(self, probability: float) -> list[Turn]:
        is_speech = probability >= self._settings.threshold
        self._speech_frames = self._speech_frames + 1 if is_speech else 0
        if self._speech_frames < self._settings.min_speech_frames:
            return []
        begun = self._heard - self._speech_frames * FRAME_SAMPLES
        self._speaking, self._speech_frames = True, 0
        return [Turn("start", begun, self._heard)]

    def _pause(self, begun: int) -> list[Turn]:
        turns: list[Turn] = []
        if self._pause_at is None:
            self._pause_at = begun
            turns.append(Turn("pause", begun, self._heard))
        if self._heard - self._pause_at >= self._end_samples:
            turns.append(self._end(self._pause_at))
        return turns

    def _end(self, at: int) -> Turn:
        self._speaking, self._pause_at, self._speech_frames = False, None, 0
        return Turn("end", at, self._heard)
