"""One live stream: samples in, jobs for the model and events for the listener out.

No clock, thread or transport in here: `push` and `finish` take samples, `next_job` says what
should be decoded now, `heard` takes the answer. All three return at once, so a driver may keep the
jobs of many streams in one queue. One draft and one final job of a stream are out at a time, so
that a final text never waits for a draft.

An utterance is decoded while it grows (drafts), and as soon as a pause has lasted two frames, in
case the pause turns out to be its end: the final text is then ready when the end is certain.

Shape suffix: N samples.
"""

# Fields carry shape suffixes like every other array's name.
# ruff: noqa: N815
from __future__ import annotations

import dataclasses

import numpy as np

from client_node.live.agreement import LocalAgreement, split_text
from client_node.live.events import Event, Final, Heard, Partial, SpeechStarted
from client_node.live.pcm import RATE_HZ
from client_node.live.voice import FRAME_SAMPLES, Network, Turn, VoiceActivity, VoiceSettings

_TAIL_SAMPLES = 2 * FRAME_SAMPLES  # of the pause, kept with the utterance before it
_CUT_WITHIN_S = 5.0
_CUT_SAMPLES = RATE_HZ // 10


@dataclasses.dataclass(frozen=True)
class LiveSettings:
    """How a stream is cut and how often it is decoded.

    Attributes:
        voice: when sound counts as speech.
        lead_s: seconds kept from before speech was noticed.
        draft_from_s: least seconds of speech worth a first draft.
        draft_every_s: least new audio between drafts.
        draft_share: least new audio between drafts, as a share of the utterance so far: a long
            utterance costs more to decode, and so is decoded less often.
        max_utterance_s: an utterance longer than this is cut at its quietest moment.
        max_waiting: ended utterances not yet decoded, from which on audio should wait.
    """

    voice: VoiceSettings = dataclasses.field(default_factory=VoiceSettings)
    lead_s: float = 0.3
    draft_from_s: float = 0.25
    draft_every_s: float = 0.2
    draft_share: float = 0.1
    max_utterance_s: float = 20.0
    max_waiting: int = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """A window to decode: `final` with all care, else as a draft. `until` is its last sample."""

    utterance: int
    samples_N: np.ndarray
    final: bool
    until: int


@dataclasses.dataclass
class _Utterance:
    number: int
    start: int
    speech_at: int
    drafted_at: int
    pause_at: int | None = None
    asked_until: int | None = None  # where the last final job for it ended
    heard_until: int = 0  # where the latest window ended whose text is shown
    ready: tuple[int, Heard] | None = None
    agreement: LocalAgreement = dataclasses.field(default_factory=LocalAgreement)
    shown: tuple[str, str] = ("", "")


@dataclasses.dataclass(frozen=True)
class _Ended:
    utterance: _Utterance
    samples_N: np.ndarray
    until: int


class LiveSession:
    """State of one stream. Not safe for threads: a driver calls it from one at a time."""

    def __init__(self, network: Network, settings: LiveSettings) -> None:
        """A stream that has heard nothing."""
        self._settings = settings
        self._voice = VoiceActivity(network, settings.voice)
        self._audio_N = np.zeros(0, np.float32)
        self._audio_from = 0  # sample of the stream at which `_audio_N` begins
        self._free_from = 0  # samples before belong to an ended utterance
        self._open: _Utterance | None = None
        self._ended: list[_Ended] = []
        self._next_number = 0
        self._out: list[Job] = []

    @property
    def heard_s(self) -> float:
        """Seconds of audio taken so far."""
        return self._now / RATE_HZ

    @property
    def is_behind(self) -> bool:
        """Whether so many ended utterances wait for the model that audio should wait too."""
        return len(self._ended) >= self._settings.max_waiting

    @property
    def is_done(self) -> bool:
        """Whether nothing is open, waiting or out."""
        return self._open is None and not self._ended and not self._out

    def push(self, samples_N: np.ndarray) -> list[Event]:
        """Take the next samples [N] float32 at 16 kHz."""
        self._audio_N = np.concatenate([self._audio_N, samples_N])
        events = [event for turn in self._voice.push(samples_N) for event in self._take(turn)]
        events += self._cut_if_too_long()
        self._forget()
        return events

    def finish(self) -> list[Event]:
        """The stream is over: an open utterance ends here."""
        return [event for turn in self._voice.end_now() for event in self._take(turn)]

    def next_job(self) -> Job | None:
        """A job for the model; None where nothing more is worth one now."""
        busy = {job.final for job in self._out}
        job = None if True in busy else self._ended_job() or self._paused_job()
        if job is None and False not in busy:
            job = self._draft_job()
        if job is not None:
            self._out.append(job)
        return job

    def heard(self, job: Job, result: Heard | None) -> list[Event]:
        """Take the result of a job that was out; None for a draft that was doubtful."""
        self._out.remove(job)
        if self._ended and self._ended[0].utterance.number == job.utterance:
            ended = self._ended[0]
            if not job.final or job.until != ended.until or result is None:
                return []  # overtaken: its utterance has ended since, and has a job of its own
            del self._ended[0]
            return [self._final(ended.utterance, ended.until, result)]
        spoken = self._open
        if spoken is None or spoken.number != job.utterance or result is None:
            return []
        if job.final:
            spoken.ready = job.until, result
        if job.until <= spoken.heard_until:
            return []  # a draft that a later window has overtaken
        spoken.heard_until = job.until
        return self._partial(spoken, result.text)

    @property
    def _now(self) -> int:
        return self._audio_from + len(self._audio_N)

    def _samples(self, start: int, end: int) -> np.ndarray:
        return self._audio_N[start - self._audio_from : end - self._audio_from].copy()

    def _take(self, turn: Turn) -> list[Event]:
        if turn.change == "start":
            return [self._begin(turn.at)]
        spoken = self._open
        if spoken is None:
            return []
        if turn.change == "pause":
            spoken.pause_at = turn.at
        elif turn.change == "resume":
            spoken.pause_at = None
        else:
            return self._end(spoken, min(turn.at + _TAIL_SAMPLES, self._now))
        return []

    def _begin(self, at: int, pause_at: int | None = None) -> SpeechStarted:
        lead = int(self._settings.lead_s * RATE_HZ)
        start = max(at - lead, self._free_from, self._audio_from)
        self._open = _Utterance(self._next_number, start, at, drafted_at=at, pause_at=pause_at)
        self._next_number += 1
        return SpeechStarted(self._open.number, at / RATE_HZ)

    def _end(self, spoken: _Utterance, until: int) -> list[Event]:
        self._open, self._free_from = None, until
        if spoken.ready is not None and spoken.ready[0] == until and not self._ended:
            return [self._final(spoken, until, spoken.ready[1])]
        self._ended.append(_Ended(spoken, self._samples(spoken.start, until), until))
        return []

    def _cut_if_too_long(self) -> list[Event]:
        """End an utterance that is too long at its quietest tenth of a second, and go on."""
        events: list[Event] = []
        longest = int(self._settings.max_utterance_s * RATE_HZ)
        while self._open is not None and self._now - self._open.start > longest:
            spoken = self._open
            first = spoken.start + longest - int(_CUT_WITHIN_S * RATE_HZ)
            window_N = self._samples(first, spoken.start + longest)
            power = np.square(window_N).reshape(-1, _CUT_SAMPLES).mean(1)
            cut = first + int(power.argmin()) * _CUT_SAMPLES + _CUT_SAMPLES // 2
            events += self._end(spoken, cut)
            events.append(self._begin(cut, spoken.pause_at))
        return events

    def _forget(self) -> None:
        """Let go of samples that no utterance can need."""
        reach = int(self._settings.lead_s * RATE_HZ)
        reach += self._settings.voice.min_speech_frames * FRAME_SAMPLES + FRAME_SAMPLES
        keep = max(self._now - reach, self._audio_from) if self._open is None else self._open.start
        self._audio_N = self._audio_N[keep - self._audio_from :]
        self._audio_from = keep

    def _ended_job(self) -> Job | None:
        if not self._ended:
            return None
        ended = self._ended[0]
        return Job(ended.utterance.number, ended.samples_N, final=True, until=ended.until)

    def _paused_job(self) -> Job | None:
        """A final job for an utterance that may just have ended."""
        spoken = self._open
        if spoken is None or spoken.pause_at is None:
            return None
        until = spoken.pause_at + _TAIL_SAMPLES
        if until > self._now or spoken.asked_until == until:
            return None
        spoken.asked_until, spoken.drafted_at = until, self._now
        return Job(spoken.number, self._samples(spoken.start, until), final=True, until=until)

    def _draft_job(self) -> Job | None:
        spoken, now = self._open, self._now
        if spoken is None or spoken.pause_at is not None:
            return None
        least_s = max(
            self._settings.draft_every_s,
            self._settings.draft_share * (now - spoken.start) / RATE_HZ,
        )
        first_at = spoken.speech_at + self._settings.draft_from_s * RATE_HZ
        if now < first_at or now - spoken.drafted_at < least_s * RATE_HZ:
            return None
        spoken.drafted_at = now
        return Job(spoken.number, self._samples(spoken.start, now), final=False, until=now)

    def _partial(self, spoken: _Utterance, text: str) -> list[Event]:
        tentative = spoken.agreement.update(split_text(text))
        shown = "".join(spoken.agreement.stable), "".join(tentative)
        if shown == spoken.shown:
            return []
        spoken.shown = shown
        return [Partial(spoken.number, *shown)]

    def _final(self, spoken: _Utterance, until: int, result: Heard) -> Final:
        start_s = spoken.start / RATE_HZ
        words = tuple(
            dataclasses.replace(w, start_s=w.start_s + start_s, end_s=w.end_s + start_s)
            for w in result.words
        )
        return Final(spoken.number, start_s, until / RATE_HZ, result.text, words, result.release)
