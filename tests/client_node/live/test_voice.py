"""Voice activity with the real network: speech is noticed, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest

from client_node.live.pcm import RATE_HZ
from client_node.live.voice import FRAME_SAMPLES, VoiceActivity, VoiceSettings, silero_network
from tests.client_node.live.sounds import no_speech
from tests.model_core.synthesis import say


@pytest.fixture(scope="module")
def network():
    return silero_network()


@pytest.mark.parametrize("name", no_speech())
def test_what_is_no_speech_starts_nothing(network, name):
    silence_N = np.zeros(RATE_HZ, np.float32)  # a sound's onset is what fools the network
    samples_N = np.concatenate([silence_N, no_speech()[name], silence_N])
    assert VoiceActivity(network, VoiceSettings()).push(samples_N) == []


def test_speech_is_found_where_it_is(network):
    spoken_N = say("Please call the office before five.").numpy()
    lead_N = np.zeros(RATE_HZ, np.float32)
    turns = VoiceActivity(network, VoiceSettings()).push(np.concatenate([lead_N, spoken_N, lead_N]))
    assert turns[0].change == "start"
    assert turns[-1].change == "end"
    loud = np.flatnonzero(np.abs(spoken_N) > 0.02) + RATE_HZ
    assert abs(turns[0].at - loud[0]) < 0.15 * RATE_HZ
    assert abs(turns[-1].at - loud[-1]) < 0.2 * RATE_HZ


def test_the_pieces_do_not_matter(network):
    samples_N = np.concatenate([say("Open a new account.").numpy(), np.zeros(RATE_HZ, np.float32)])
    whole = VoiceActivity(network, VoiceSettings()).push(samples_N)
    pieces = VoiceActivity(network, VoiceSettings())
    found = [
        turn
        for at in range(0, len(samples_N), 700)
        for turn in pieces.push(samples_N[at : at + 700])
    ]
    assert found == whole
    assert whole


def test_a_pause_is_told_at_once_and_the_end_when_it_lasts():
    chances = iter([0.9] * 4 + [0.1] * 3 + [0.9] * 2 + [0.1] * 10)
    settings = VoiceSettings(min_speech_frames=2, end_silence_s=0.25)
    voice = VoiceActivity(lambda _, state: (next(chances), state), settings)
    turns = voice.push(np.zeros(19 * FRAME_SAMPLES, np.float32))
    told = [(t.change, t.at // FRAME_SAMPLES, t.known_at // FRAME_SAMPLES) for t in turns]
    assert told == [
        ("start", 0, 2),
        ("pause", 4, 5),
        ("resume", 7, 8),
        ("pause", 9, 10),
        ("end", 9, 17),
    ]


def test_a_short_burst_is_no_speech():
    chances = iter([0.1, 0.99, 0.99, 0.99, 0.99, 0.4, 0.99])
    voice = VoiceActivity(lambda _, state: (next(chances), state), VoiceSettings())
    assert voice.push(np.zeros(7 * FRAME_SAMPLES, np.float32)) == []
