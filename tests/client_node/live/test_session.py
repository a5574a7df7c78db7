"""A live session from outside: utterances, drafts, finals and what stays in memory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client_node.live.events import Final, Heard, Partial, SpeechStarted
from client_node.live.pcm import RATE_HZ
from client_node.live.session import LiveSession, LiveSettings
from tests.client_node.live.live_support import (
    LOUD,
    CountingEar,
    count_aloud,
    loudness_network,
    sound,
)

FRAME = 512


def answer(session, ear):
    """Do the jobs that are due, one after another; returns their events."""
    events = []
    while (job := session.next_job()) is not None:
        heard = ear.final(job.samples_N) if job.final else ear.draft(job.samples_N)
        events += session.heard(job, heard)
    return events


def play(samples_N, piece=1600, ear=None):
    """Push samples in pieces with a model that answers at once."""
    session, ear, events = LiveSession(loudness_network, LiveSettings()), ear or CountingEar(), []
    for start in range(0, len(samples_N), piece):
        events += session.push(samples_N[start : start + piece])
        events += answer(session, ear)
    events += session.finish()
    events += answer(session, ear)
    assert session.is_done
    return events


def test_two_utterances_with_partials_that_grow():
    events = play(sound((0.5, 0), (2.0, LOUD), (1.0, 0), (1.2, LOUD), (0.5, 0)))
    finals = [e for e in events if isinstance(e, Final)]
    assert [f.text for f in finals] == ["word0 word1 word2 word3", "word0 word1"]
    first, second = finals
    assert first.start_s == pytest.approx(0.2, abs=0.05)
    assert first.end_s == pytest.approx(2.56, abs=0.05)
    assert second.words[0].start_s == pytest.approx(second.start_s)
    assert first.release == "r7"
    partials = [e for e in events if isinstance(e, Partial) and e.utterance == 0]
    assert partials[0].tentative == "word0"
    assert partials[-1].stable.startswith("word0 word1")


def test_a_final_is_ready_when_the_end_is_certain():
    """The window up to the pause is decoded during the pause, not after it."""
    session, ear = LiveSession(loudness_network, LiveSettings()), CountingEar()
    session.push(sound((0.5, 0), (1.0, LOUD)))
    answer(session, ear)
    session.push(sound((0.13, 0)))
    answer(session, ear)
    assert ear.windows[-1][0] == "final"
    asked = len(ear.windows)
    events = session.push(sound((0.2, 0)))
    assert [type(e) for e in events] == [Final]
    assert len(ear.windows) == asked


def test_a_pause_that_was_none_costs_nothing_but_a_draft():
    events = play(sound((1.0, LOUD), (0.15, 0), (1.0, LOUD), (0.5, 0)))
    finals = [e for e in events if isinstance(e, Final)]
    assert [f.text for f in finals] == ["word0 word1 word2 word3"]


def test_a_late_answer_does_not_become_the_final():
    """A draft that comes back after its utterance has ended is dropped."""
    session = LiveSession(loudness_network, LiveSettings())
    session.push(sound((1.0, LOUD)))
    draft = session.next_job()
    assert draft is not None
    assert not draft.final
    session.push(sound((1.0, 0)))
    assert session.heard(draft, Heard("an early guess")) == []
    job = session.next_job()
    assert job is not None
    assert job.final
    (final,) = session.heard(job, Heard("the whole of it"))
    assert final.text == "the whole of it"
    assert session.is_done


def test_a_final_does_not_wait_for_a_draft_and_an_overtaken_draft_is_not_shown():
    session, ear = LiveSession(loudness_network, LiveSettings()), CountingEar()
    session.push(sound((1.0, LOUD)))
    draft = session.next_job()
    session.push(sound((0.1, 0)))
    final = session.next_job()
    assert draft is not None
    assert final is not None
    assert (draft.final, final.final) == (False, True)
    assert session.next_job() is None
    (shown,) = session.heard(final, ear.final(final.samples_N))
    assert shown.tentative == "word0 word1"
    assert session.heard(draft, Heard("an early guess")) == []
    (end,) = session.push(sound((0.3, 0)))
    assert end.text == "word0 word1"


def test_a_doubtful_draft_shows_nothing():
    session = LiveSession(loudness_network, LiveSettings())
    session.push(sound((1.0, LOUD)))
    job = session.next_job()
    assert session.heard(job, None) == []


def test_an_endless_utterance_is_cut_without_loss():
    quiet_at = sound((17.0, LOUD), (0.1, 0.11), (30.0, LOUD), (1.0, 0))
    finals = [e for e in play(quiet_at) if isinstance(e, Final)]
    assert len(finals) == 3
    assert finals[0].end_s == pytest.approx(17.05, abs=0.15)
    for before, after in itertools.pairwise(finals):
        assert after.start_s == before.end_s
    assert all(f.end_s - f.start_s <= 20.0 for f in finals)


def test_silence_keeps_little_and_asks_for_nothing():
    session = LiveSession(loudness_network, LiveSettings())
    for _ in range(600):
        assert session.push(np.zeros(RATE_HZ, np.float32)) == []
        assert session.next_job() is None
    assert session._audio_N.nbytes < 64 * 1024
    assert session.heard_s == 600


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.02, 2.0), st.sampled_from([0.0, LOUD])), min_size=1, max_size=8),
    st.integers(100, 40_000),
)
def test_every_start_is_closed_by_one_final_in_order(stretches, piece):
    events = play(sound(*stretches), piece)
    started = [e.utterance for e in events if isinstance(e, SpeechStarted)]
    finals = [e for e in events if isinstance(e, Final)]
    assert started == [f.utterance for f in finals] == list(range(len(started)))
    for before, after in itertools.pairwise(finals):
        assert before.end_s <= after.start_s
    stable: dict[int, str] = {}
    for event in events:
        if isinstance(event, Partial):
            assert event.stable.startswith(stable.get(event.utterance, ""))
            stable[event.utterance] = event.stable


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.3, 3.0), min_size=1, max_size=5), st.integers(100, 40_000))
def test_no_loud_sample_is_lost(loud_s, piece):
    """Whatever the pieces, finals hold all the speech: nothing is cut off and nothing twice."""
    samples_N = sound(*[pair for s in loud_s for pair in ((s, LOUD), (1.0, 0.0))])
    heard = []

    class Keeping(CountingEar):
        def final(self, samples_N):
            heard.append(samples_N)
            return Heard(count_aloud(samples_N))

    finals = [e for e in play(samples_N, piece, Keeping()) if isinstance(e, Final)]
    covered = np.zeros(len(samples_N), int)
    for final in finals:
        covered[round(final.start_s * RATE_HZ) : round(final.end_s * RATE_HZ)] += 1
    assert (covered[samples_N > 0.1] == 1).all()
