"""Transcription: what was said, in any company, and nothing where nothing was said."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

from model_core import transcribe
from model_core.adapter import AdapterConfig, attach
from model_core.audio import RATE_HZ
from model_core.cached_decoder import CachedDecoder
from model_core.decode import Decoded, greedy
from model_core.evaluate import word_error_rate
from model_core.features import encode_mel, log_mel
from model_core.guards import runs_away, without_repetition
from model_core.silent_tail import TailedEncoder
from model_core.sound import MAX_PIECE_S, cut_at_pauses, is_silent, may_be_speech
from model_core.transcribe import Transcriber, clip_window_s
from tests.model_core.conftest import SENTENCES


def states(base, clips, window):
    with torch.inference_mode():
        return encode_mel(base.model.model.encoder, log_mel(clips, window))


def test_synthetic_sentences_are_understood(tiny_base, clips):
    transcripts = Transcriber(tiny_base).transcribe_many(clips)
    assert word_error_rate(SENTENCES, [each.text for each in transcripts]) < 0.2
    for clip, each in zip(clips, transcripts, strict=True):
        assert each.duration_s == pytest.approx(len(clip) / RATE_HZ)
        assert each.segments[0].start_s == 0
        assert each.segments[-1].end_s == pytest.approx(each.duration_s)


def test_greedy_equals_transformers(tiny_base, clips):
    tokenizer, rules, model = tiny_base.tokenizer, tiny_base.rules, tiny_base.model
    model.generation_config = GenerationConfig(
        suppress_tokens=list(rules.suppress),
        begin_suppress_tokens=list(rules.begin_suppress),
        decoder_start_token_id=tokenizer.start,
        eos_token_id=tokenizer.end,
        pad_token_id=tokenizer.end,
        bos_token_id=tokenizer.end,
        no_timestamps_token_id=tokenizer.no_timestamps,
        is_multilingual=False,
        return_timestamps=False,
        max_length=100,
    )
    decoder = CachedDecoder(model)
    for clip in clips:
        states_BSD = states(tiny_base, [clip], clip_window_s(len(clip)))
        stock = model.generate(encoder_outputs=BaseModelOutput(last_hidden_state=states_BSD))
        ours = greedy(decoder, tiny_base, states_BSD, tokenizer.prefix())[0]
        assert tokenizer.decode(ours.ids) == tokenizer.decode(stock[0].tolist())


def test_company_does_not_change_a_transcript(tiny_base, clips):
    transcriber = Transcriber(tiny_base)
    silence = torch.zeros(RATE_HZ)
    together = transcriber.transcribe_many([clips[2], silence, clips[0], clips[1]])
    alone = [transcriber.transcribe(clip) for clip in (clips[2], silence, clips[0], clips[1])]
    for one, other in zip(together, alone, strict=True):
        assert dataclasses.replace(one, segments=()) == dataclasses.replace(other, segments=())
        for near, exact in zip(one.segments, other.segments, strict=True):
            assert (near.text, near.ids) == (exact.text, exact.ids)
            assert (near.start_s, near.end_s) == (exact.start_s, exact.end_s)
            likely = pytest.approx(exact.mean_log_probability, abs=1e-4)
            assert near.mean_log_probability == likely
            assert near.no_speech_probability == pytest.approx(
                exact.no_speech_probability, abs=1e-4
            )


def test_cached_states_give_the_same_text(tiny_base, clips):
    cached = states(tiny_base, clips[:1], 30.0).half()
    transcriber = Transcriber(tiny_base)
    assert transcriber.decode_states(cached) == [transcriber.transcribe(clips[0]).text]


def test_a_doubtful_text_is_made_again_in_a_long_window(tiny_base, clips, monkeypatch):
    """Every text in a window below 30 s is doubted: what stands is the text of 30 s."""
    windows = []
    encoder = TailedEncoder(tiny_base.model.model.encoder)

    class Watching(TailedEncoder):
        def __call__(self, mel_BMT, frames_B):
            windows.append(list(frames_B))
            return encoder(mel_BMT, frames_B)

    monkeypatch.setattr(transcribe, "TailedEncoder", Watching)
    monkeypatch.setattr(Decoded, "is_doubtful", lambda *_: True)
    text = Transcriber(tiny_base).transcribe(clips[0]).text
    assert windows[1:] == [[3000]]
    assert word_error_rate(SENTENCES[:1], [text]) < 0.2


T = torch.arange(2 * RATE_HZ) / RATE_HZ
NOISE = torch.randn(2 * RATE_HZ, generator=torch.Generator().manual_seed(0))
HUM = torch.stack([(2 * torch.pi * 50 * k * T).sin() / k for k in (1, 2, 3, 5)]).sum(0)
NOT_SPEECH = {
    "zeros": 0 * T,
    "faint hiss": NOISE * 1e-4,
    "empty": T[:0],
    "faint hum": 3e-4 * HUM,
    "loud hum": 0.2 * HUM,
    "loud hiss": 0.1 * NOISE,
    "hum and hiss": 0.05 * HUM + 0.003 * NOISE,
    "tone": 0.1 * (2 * torch.pi * 1000 * T).sin(),
    "hum in 8 bits": (0.2 * HUM * 128).round() / 128,
}


@pytest.mark.parametrize("kind", NOT_SPEECH)
def test_silence_and_steady_sounds_give_nothing(tiny_base, kind):
    transcript = Transcriber(tiny_base).transcribe(NOT_SPEECH[kind])
    assert (transcript.text, transcript.segments) == ("", ())


@pytest.mark.parametrize("snr_db", [20, 10, 0])
def test_speech_under_noise_is_not_taken_for_a_steady_sound(clips, snr_db):
    for clip in clips:
        noise = torch.randn(len(clip), generator=torch.Generator().manual_seed(0))
        assert may_be_speech(clip + noise * clip.square().mean().sqrt() / 10 ** (snr_db / 20))


def test_prompt_terms_reach_the_decoder(tiny_base, clips):
    """The same sound is spelt as the prompt spells it."""
    plain = Transcriber(tiny_base).transcribe(clips[2]).text
    prompted = Transcriber(tiny_base, prompt_terms=("OPEN A NEW SAVINGS ACCOUNT FOR ME.",) * 3)
    assert prompted.transcribe(clips[2]).text != plain


def test_prompt_is_cut_to_whispers_length(base):
    prompt = base.tokenizer.prompt([f"term{i}" for i in range(100)])
    assert prompt[0] == base.tokenizer.previous
    assert len(prompt) <= 224
    assert base.tokenizer.decode(prompt[1:]).startswith("term0, term1,")
    assert base.tokenizer.prompt([]) == ()


def test_adapter_is_used_and_neutral_at_first(tiny_base, clips):
    adapter = attach(tiny_base.model, AdapterConfig("lora", 2, 1.0, ("encoder_attn.v_proj",)))
    plain = Transcriber(tiny_base).transcribe(clips[0]).text
    assert Transcriber(tiny_base, adapter).transcribe(clips[0]).text == plain
    adapter.load_vector(torch.full((adapter.size,), 0.5))
    assert Transcriber(tiny_base, adapter).transcribe(clips[0]).text != plain
    assert Transcriber(tiny_base).transcribe(clips[0]).text == plain


def test_runaway_repetition_ends_with_the_phrase_said_once():
    assert not runs_away([1, 2, 3] * 3)
    assert runs_away([9, *[1, 2, 3] * 4])
    assert without_repetition([9, *[1, 2, 3] * 4]) == [9, 1, 2, 3]
    assert not runs_away([5] * 7)  # a dictated number may have many zeros
    assert without_repetition([7, *[5] * 8]) == [7, 5]


@settings(max_examples=25, deadline=None)
@given(
    duration_s=st.floats(0, 100),
    pauses=st.lists(st.floats(0, 1), max_size=8),
)
def test_pieces_cover_the_recording_and_fit_the_window(duration_s, pauses):
    samples = torch.full((int(duration_s * RATE_HZ),), 0.1)
    for pause in pauses:
        start = int(pause * len(samples))
        samples[start : start + RATE_HZ // 2] = 0
    spans = cut_at_pauses(samples)
    assert spans[0][0] == 0
    assert spans[-1][1] == len(samples)
    assert all(left[1] == right[0] for left, right in itertools.pairwise(spans))
    assert all(end - start <= MAX_PIECE_S * RATE_HZ for start, end in spans)


def test_cut_falls_into_the_pause():
    samples = torch.full((40 * RATE_HZ,), 0.1)
    samples[20 * RATE_HZ : 21 * RATE_HZ] = 0
    assert 20.0 <= cut_at_pauses(samples)[0][1] / RATE_HZ <= 21.0


def test_long_recording_is_transcribed_whole(tiny_base, clips):
    pause = torch.zeros(9 * RATE_HZ)
    recording = torch.cat([clips[0], pause, clips[1], pause, clips[2], pause])
    transcript = Transcriber(tiny_base).transcribe(recording)
    assert len(transcript.segments) >= 2
    assert word_error_rate([" ".join(SENTENCES)], [transcript.text]) < 0.2


@given(samples=st.integers(0, 40_000))
def test_is_silent_looks_at_every_part(samples):
    quiet = torch.zeros(samples)
    assert is_silent(quiet)
    if samples:
        quiet[-1] = 0.5
        assert not is_silent(quiet)
