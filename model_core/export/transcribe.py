"""Speech to text with an exported model: the cuts of `model_core.transcribe`, longer windows.

The export remembers no silence, so its windows are the clip + 3 s and at least 10 s.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from model_core.audio import RATE_HZ
from model_core.decode import Decoded
from model_core.export.runtime import OnnxSpeech
from model_core.features import MAX_WINDOW_S, log_mel
from model_core.sound import cut_at_pauses, may_be_speech
from model_core.transcribe import Segment, Transcript, clip_window_s


class OnnxTranscriber:
    """`Transcriber` on an exported model instead of a torch one. Safe to share between threads.

    An adapter is part of the exported weights; `prompt_terms` and `language` work alike.
    """

    def __init__(
        self, speech: OnnxSpeech, prompt_terms: Sequence[str] = (), language: str = "en"
    ) -> None:
        self._speech = speech
        tokenizer = speech.tokenizer
        self._prefix = (*tokenizer.prompt(prompt_terms), *tokenizer.prefix(language))

    def transcribe(self, samples: Tensor) -> Transcript:
        """Transcribe one recording: [N] float32 at 16 kHz, any length."""
        segments = [
            Segment(
                start / RATE_HZ,
                end / RATE_HZ,
                heard[1],
                mean_log_probability=heard[0].mean_log_probability,
                no_speech_probability=heard[0].no_speech_probability,
                ids=heard[0].ids,
            )
            for start, end in cut_at_pauses(samples)
            if (heard := self._heard(samples[start:end])) and heard[1]
        ]
        return Transcript(
            text=" ".join(segment.text for segment in segments),
            segments=tuple(segments),
            duration_s=len(samples) / RATE_HZ,
        )

    def transcribe_many(self, recordings: Sequence[Tensor]) -> list[Transcript]:
        """Transcribe recordings one after the other."""
        return [self.transcribe(samples) for samples in recordings]

    def _heard(self, clip: Tensor) -> tuple[Decoded, str] | None:
        """The clip in its short window; once more in the longest where the text is doubtful."""
        if not may_be_speech(clip):
            return None
        decoded, text = self._hear(clip, clip_window_s(len(clip)))
        if decoded.is_doubtful(text):
            return self._hear(clip, MAX_WINDOW_S)
        return decoded, text

    def _hear(self, clip: Tensor, window_s: float) -> tuple[Decoded, str]:
        mel_BMT = log_mel([clip], window_s, self._speech.mel_bins)
        decoded = self._speech.decode_mel(mel_BMT, self._prefix)[0]
        return decoded, "" if decoded.is_silence else self._speech.tokenizer.decode(decoded.ids)
