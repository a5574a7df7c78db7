"""Transcribe with ONNX Runtime: encode, then greedy decoding with a key-value cache.

Clips go through one by one. With INT8 the encoder's activations share one scale per call, so in a
batch a clip's numbers would depend on its neighbours'; and a decoder step on one row already runs
near the speed at which weights are read, so a batch would gain little.

Shape suffixes: B batch (always 1), M mel bins, T mel frames, V vocabulary, J wanted positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime import InferenceSession, OrtValue
from torch import Tensor

from model_core.decode import Decoded, Row, token_limit
from model_core.export.graph import cache_names, cross_names, past_names
from model_core.tokens import SpeechTokenizer
from model_core.weights import DecodingRules

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class DecoderShape:
    """What an empty cache looks like: layers, heads, numbers per head."""

    layers: int
    heads: int
    head_width: int


class OnnxSpeech:
    """An exported model: the engine of `export.transcribe.OnnxTranscriber`.

    Made by `model_core.export.folder.load_onnx`. Safe to share between threads.

    Attributes:
        tokenizer: text to ids and back.
        mel_bins: M.
    """

    def __init__(
        self,
        *,
        encoder: InferenceSession,
        decoder: InferenceSession,
        shape: DecoderShape,
        tokenizer: SpeechTokenizer,
        rules: DecodingRules,
        mel_bins: int,
    ) -> None:
        self._encoder, self._decoder, self._shape = encoder, decoder, shape
        self.tokenizer, self.mel_bins = tokenizer, mel_bins
        vocabulary = decoder.get_outputs()[0].shape[-1]
        self._banned_V = np.zeros(vocabulary, dtype=bool)
        self._banned_V[list(rules.suppress)] = True
        self._banned_V[tokenizer.no_timestamps :] = True
        self._first_banned_V = self._banned_V.copy()
        self._first_banned_V[list(rules.begin_suppress)] = True

    def decode_mel(self, mel_BMT: Tensor, prefix: Sequence[int]) -> list[Decoded]:
        """Decode windows of log-mel: [B, M, T], T even. Rows do not influence each other."""
        windows = mel_BMT.numpy()
        return [
            self.decode(self.encode(windows[row : row + 1]), prefix) for row in range(len(windows))
        ]

    def encode(self, mel_BMT: Floats) -> dict[str, OrtValue]:
        """Keys and values of every cross-attention, for one window."""
        names = cross_names(self._shape.layers)
        mel = {"mel": OrtValue.ortvalue_from_numpy(np.ascontiguousarray(mel_BMT))}
        return dict(zip(names, self._encoder.run_with_ort_values(names, mel), strict=True))

    def logits(
        self, ids: Sequence[int], wanted: Sequence[int], crossed: dict[str, OrtValue], cache: Cache
    ) -> Floats:
        """Logits [J, V] after `ids` at the wanted positions among them; the cache grows."""
        feeds = {
            "ids": OrtValue.ortvalue_from_numpy(np.array([ids], dtype=np.int64)),
            "wanted": OrtValue.ortvalue_from_numpy(np.array(wanted, dtype=np.int64)),
            **crossed,
            **cache.tensors,
        }
        outputs = self._decoder.run_with_ort_values(
            ["logits", *cache_names(self._shape.layers)], feeds
        )
        cache.tensors = dict(zip(past_names(self._shape.layers), outputs[1:], strict=True))
        logits_JV: Floats = outputs[0].numpy()[0]
        return logits_JV

    def empty_cache(self) -> Cache:
        """A cache of no positions."""
        heads, width = self._shape.heads, self._shape.head_width
        empty = (
            np.zeros((1, heads, width, 0), np.float32),
            np.zeros((1, heads, 0, width), np.float32),
        )
        names = past_names(self._shape.layers)
        return Cache({n: OrtValue.ortvalue_from_numpy(empty[at % 2]) for at, n in enumerate(names)})

    def decode(self, crossed: dict[str, OrtValue], prefix: Sequence[int]) -> Decoded:
        """Greedy decoding of one window, with the guards of `model_core.decode`."""
        states = crossed["cross_value_0"].shape()[2]
        cache = self.empty_cache()
        start = list(prefix).index(self.tokenizer.start)
        start_V, last_V = self.logits(prefix, (start, len(prefix) - 1), crossed, cache)
        row = Row(token_limit(states))
        if self.tokenizer.no_speech is not None:
            row.no_speech = float(np.exp(_log_softmax(start_V)[self.tokenizer.no_speech]))
        banned_V = self._first_banned_V
        while row.is_open:
            if row.ids:
                last_V = self.logits(row.ids[-1:], (0,), crossed, cache)[0]
                banned_V = self._banned_V
            log_p_V = _log_softmax(np.where(banned_V, -np.inf, last_V))
            token = int(log_p_V.argmax())
            row.write(token, float(log_p_V[token]), self.tokenizer.end)
        return row.decoded(self.tokenizer.end)


@dataclass
class Cache:
    """Keys and values of the decoder's positions so far, by the names of the graph's inputs."""

    tensors: dict[str, OrtValue] = field(default_factory=dict)


def open_session(path: str, threads: int | None) -> InferenceSession:
    """An ONNX Runtime session on the CPU; `threads` None takes one per physical core."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    return InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _log_softmax(logits_V: Floats) -> Floats:
    shifted_V = logits_V - logits_V.max()
    log_p_V: Floats = shifted_V - np.log(np.exp(shifted_V).sum())
    return log_p_V
