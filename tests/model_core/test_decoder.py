"""The decoder of our own: against transformers, and row by row independent of the batch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import GenerationConfig
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor
from transformers.models.whisper.generation_whisper import _dynamic_time_warping

from model_core.beam import beam_search
from model_core.cached_decoder import CachedDecoder
from model_core.decode import Decoded, greedy, token_limit
from model_core.decode_rules import TokenRules
from model_core.features import encode_mel, padding_bias
from model_core.guards import compression_ratio
from model_core.int8 import Int8Linear, Int8Mixture, Vocabulary, int8_encoder
from model_core.nano import nano_base
from model_core.silent_tail import TailedEncoder
from model_core.upcycle import MixtureConfig, mixtures
from model_core.words import align, split_words, token_starts, upper_half


@pytest.fixture
def states():
    return torch.randn(3, 40, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def decoder(base):
    return CachedDecoder(base.model)


def hidden_step_by_step(decoder, ids_NT, states_CSD, bias_CS=None):
    cache = decoder.start(states_CSD, ids_NT.shape[1], bias_CS)
    parts = [decoder.step(ids_NT[:, :2], cache)]
    parts += [decoder.step(ids_NT[:, [t]], cache) for t in range(2, ids_NT.shape[1])]
    return torch.cat(parts, 1)


@pytest.mark.parametrize("top_k", [1, 2])
def test_steps_equal_transformers(states, top_k):
    model = nano_base(mixture=MixtureConfig(top_k=top_k)).model
    ids_NT = torch.randint(0, 250, (3, 7), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = hidden_step_by_step(CachedDecoder(model), ids_NT, states)
        alone = hidden_step_by_step(CachedDecoder(model), ids_NT[:1], states[:1])
        stock = model.model.decoder(input_ids=ids_NT, encoder_hidden_states=states)[0]
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-5)
    torch.testing.assert_close(alone, stock[:1], rtol=0, atol=1e-5)


def test_no_room_is_refused(decoder, states):
    cache = decoder.start(states, 2)
    decoder.step(torch.zeros(3, 2, dtype=torch.long), cache)
    with pytest.raises(ValueError, match="no room"):
        decoder.step(torch.zeros(3, 1, dtype=torch.long), cache)


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_padding_never_leaks(base, lengths, seed):
    """Encoder and decoder: one clip alone equals the clip among longer ones, and garbage pads."""
    generator = torch.Generator().manual_seed(seed)
    frames = [2 * length for length in lengths]
    mel_BMT = 100 * torch.randn(len(frames), 80, max(frames), generator=generator)
    mels = [torch.randn(80, n, generator=generator) for n in frames]
    for row, mel_MT in enumerate(mels):
        mel_BMT[row, :, : frames[row]] = mel_MT
    encoder, decoder = base.model.model.encoder, CachedDecoder(base.model)
    ids_NT = torch.randint(0, 250, (len(frames), 4), generator=generator)
    with torch.inference_mode():
        many = encode_mel(encoder, mel_BMT, frames)
        together = hidden_step_by_step(decoder, ids_NT, many, padding_bias(lengths, many.shape[1]))
        for row, mel_MT in enumerate(mels):
            one = encode_mel(encoder, mel_MT[None])
            torch.testing.assert_close(many[row, : lengths[row]], one[0], rtol=0, atol=1e-5)
            alone = hidden_step_by_step(decoder, ids_NT[[row]], one)
            torch.testing.assert_close(together[[row]], alone, rtol=0, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(10, 60), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_silence_after_a_clip_does_not_depend_on_its_company(base, lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    frames = [2 * length for length in lengths]
    # Each row has its own level of silence: -0.8, -0.6, -0.4, ... of the normalised log-mel.
    floor_B11 = torch.linspace(-0.8, -0.8 + 0.2 * (len(frames) - 1), len(frames))[:, None, None]
    mel_BMT = torch.randn(len(frames), 80, max(frames), generator=generator).maximum(floor_B11)
    encoder = TailedEncoder(base.model.model.encoder)
    ids_NT = torch.randint(0, 250, (len(frames), 4), generator=generator)
    decoder = CachedDecoder(base.model)
    with torch.inference_mode():
        many, bias = encoder(mel_BMT, frames)
        together = hidden_step_by_step(decoder, ids_NT, many, bias)
        for row, (n, length) in enumerate(zip(frames, lengths, strict=True)):
            one, own_bias = encoder(mel_BMT[[row], :, :n], [n])
            torch.testing.assert_close(many[row, :length], one[0, :length], rtol=0, atol=1e-5)
            alone = hidden_step_by_step(decoder, ids_NT[[row]], one, own_bias)
            torch.testing.assert_close(together[[row]], alone, rtol=0, atol=1e-5)
            assert float(own_bias.exp().sum()) == pytest.approx(1500 - 1500 % 8, abs=8)


def test_silence_known_beforehand_stands_for_encoded_silence(tiny_dense):
    """A short window and the remembered rest of 30 s give what 30 s of silence give."""
    encoder = tiny_dense.model.model.encoder
    mel_BMT = torch.full((1, 80, 3000), -0.6)
    with torch.inference_mode():
        whole = encode_mel(encoder, mel_BMT)[0, :150]
        tailed = TailedEncoder(encoder)(mel_BMT[..., :400], [400])[0][0, :150]
        cut = encode_mel(encoder, mel_BMT[..., :400])[0, :150]
    assert float((tailed - whole).norm()) < 0.25 * float((cut - whole).norm())


@settings(max_examples=10, deadline=None)
@given(order=st.permutations([0, 1, 2]), lengths=st.tuples(*[st.integers(5, 40)] * 3))
def test_order_and_company_do_not_matter(base, order, lengths):
    states = torch.randn(3, 40, 32, generator=torch.Generator().manual_seed(1))
    decoder, prefix = CachedDecoder(base.model), base.tokenizer.prefix()
    alone = [
        greedy(decoder, base, states[i : i + 1, :n], prefix)[0].ids for i, n in enumerate(lengths)
    ]
    shuffled = greedy(decoder, base, states[order], prefix, [lengths[i] for i in order])
    assert [each.ids for each in shuffled] == [alone[i] for i in order]


def test_one_beam_is_greedy(decoder, base, states):
    prefix = base.tokenizer.prefix()
    plain = greedy(decoder, base, states, prefix)
    for states_SD, each in zip(states, plain, strict=True):
        one = beam_search(decoder, base, states_SD, prefix, 1)
        assert one.ids == each.ids
        assert one.mean_log_probability == pytest.approx(each.mean_log_probability, abs=1e-2)


def searched_without_a_cache(base, states_SD, prefix, beams, limit):
    """Beam search by the book (patience 1): every text is decoded anew, whole, by transformers."""
    rules, end = TokenRules(base, base.model.config.vocab_size), base.tokenizer.end
    going, ended = [((), 0.0)], []
    while going and len(ended) < beams:
        forks = []
        for ids, total in going:
            hidden_TD = base.model.model.decoder(
                input_ids=torch.tensor([[*prefix, *ids]]), encoder_hidden_states=states_SD[None]
            )[0][0]
            bias_V = rules.bias_V if ids else rules.first_bias_V
            log_p_V = (base.model.proj_out(hidden_TD[-1]) + bias_V).log_softmax(-1)
            best = log_p_V.topk(2 * beams)
            forks += [
                ((*ids, token), total + log_p)
                for log_p, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
        forks = sorted(forks, key=lambda fork: -fork[1])[: 2 * beams]
        ended += [fork for fork in forks if fork[0][-1] == end]
        going = [fork for fork in forks if fork[0][-1] != end][:beams]
        if len(going[0][0]) == limit:
            ended = ended or going
            going = []
    ids, total = max(ended, key=lambda fork: fork[1] / len(fork[0]))
    return tuple(token for token in ids if token != end), total / len(ids)


@pytest.mark.parametrize("beams", [2, 3, 5])
def test_beams_are_those_of_a_search_without_a_cache(beams, states):
    """Forked texts keep their own keys: a beam that read another's would score otherwise."""
    base = nano_base()
    generator = torch.Generator().manual_seed(beams)
    with torch.no_grad():  # each position has its own favourites, so that no text repeats itself
        positions = base.model.model.decoder.embed_positions.weight
        positions.copy_(torch.randn(positions.shape, generator=generator))
        tokens = base.model.proj_out.weight
        tokens[base.tokenizer.end] = 1.1 * tokens[161]  # a favourite of some: texts end there
    decoder, prefix = CachedDecoder(base.model), base.tokenizer.prefix()
    for states_SD in states:
        short_SD = states_SD[:4]
        limit = token_limit(len(short_SD))
        with torch.inference_mode():
            ids, score = searched_without_a_cache(base, short_SD, prefix, beams, limit)
        found = beam_search(decoder, base, short_SD, prefix, beams)
        assert found.ids == ids
        assert found.mean_log_probability == pytest.approx(score, abs=1e-3)


def test_vocabulary_decides_in_float32():
    generator = torch.Generator().manual_seed(0)
    tokens_VD, hidden_ND = (torch.randn(n, 32, generator=generator) for n in (500, 20))
    exact_NV = hidden_ND @ tokens_VD.t()
    logits_NV = Vocabulary(tokens_VD).logits(hidden_ND)
    assert torch.equal(logits_NV.argmax(-1), exact_NV.argmax(-1))
    torch.testing.assert_close(logits_NV.amax(-1), exact_NV.amax(-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(logits_NV, exact_NV, rtol=0, atol=0.5)
    banned_V = torch.zeros(500)
    banned_V[exact_NV[0].argmax()] = -torch.inf
    assert Vocabulary(tokens_VD).logits(hidden_ND, banned_V)[0].argmax() == (
        (exact_NV[0] + banned_V).argmax()
    )


@given(seed=st.integers(0, 99), rows=st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_int8_rows_do_not_meet(seed, rows):
    generator = torch.Generator().manual_seed(seed)
    layer = Int8Linear(torch.randn(24, 32, generator=generator), None)
    x_NI = torch.randn(rows, 32, generator=generator) * 10 ** torch.randn(rows, 1)
    alone = torch.cat([layer(row[None]) for row in x_NI])
    assert torch.equal(layer(x_NI), alone)


def test_int8_mixture_is_near_float32(base):
    mixture = mixtures(base.model)[0]
    x_ND = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    exact, near = mixture(x_ND), Int8Mixture(mixture)(x_ND)
    assert float((exact - near).norm() / exact.norm()) < 0.03


def test_int8_encoder_leaves_the_base_alone(base):
    before = {name: type(each) for name, each in base.model.named_modules()}
    encoder = int8_encoder(base.model.model.encoder)
    assert {name: type(each) for name, each in base.model.named_modules()} == before
    linears = [n for n, each in encoder.named_modules() if isinstance(each, nn.Linear)]
    assert all("router" in name or "_gate" in name for name in linears)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_times_follow_transformers_rules(data):
    end, no_timestamps, vocabulary = 40, 50, 120
    tokens = st.one_of(st.integers(0, 39), st.integers(51, 119))
    written = data.draw(st.lists(tokens, max_size=6))
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(len(written)))
    config = GenerationConfig(
        eos_token_id=end, bos_token_id=end, no_timestamps_token_id=no_timestamps
    )
    config.max_initial_timestamp_index = 50
    stock = WhisperTimeStampLogitsProcessor(config, begin_index=1)
    expected = stock(torch.tensor([[45, *written]]), logits.clone())
    base: Any = SimpleNamespace(
        tokenizer=SimpleNamespace(end=end, no_timestamps=no_timestamps),
        rules=SimpleNamespace(suppress=(), begin_suppress=()),
    )
    rules = TokenRules(base, vocabulary, timestamps=True)
    ours = logits + (rules.bias_V if written else rules.first_bias_V)
    rules.apply_times(ours, [written])
    assert torch.equal(ours.isinf(), expected.isinf())


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(1, 12), states=st.integers(1, 30), seed=st.integers(0, 999))
def test_alignment_equals_transformers(tokens, states, seed):
    cost = np.random.default_rng(seed).normal(size=(tokens, states))
    rows, columns = _dynamic_time_warping(cost)
    first = [int(columns[rows == token].min()) for token in range(tokens)]
    assert token_starts(cost) == first


def test_words_have_rising_times_and_all_the_text(tiny_base, clips):
    from model_core.transcribe import Transcriber

    transcript = Transcriber(tiny_base).transcribe(clips[1], words=True)
    words = transcript.segments[0].words
    assert " ".join(word.text for word in words) == transcript.text
    starts = [word.start_s for word in words]
    assert starts == sorted(starts)
    assert all(0 <= w.start_s <= w.end_s <= transcript.duration_s for w in words)
    assert all(0 < word.confidence <= 1 for word in words)
    assert words[-1].start_s > transcript.duration_s / 2  # "morning" comes last


def test_words_of_scripts_without_spaces(base):
    ids = base.tokenizer.encode("你好吗 yes, no")
    words = split_words(base.tokenizer, ids)
    assert [text for text, _ in words] == ["你", "好", "吗", "yes,", "no"]
    assert sum(count for _, count in words) == len(ids)


def test_heads_of_the_upper_half_stand_in(base, decoder, states):
    assert upper_half(4, 2) == ((2, 0), (2, 1), (3, 0), (3, 1))
    ids = tuple(base.tokenizer.encode("two words"))
    decoded = Decoded(ids, (-0.5,) * len(ids), -0.5, 0.0, True)
    words = align(decoder, base, states[0], base.tokenizer.prefix(), decoded, duration_s=0.6)
    assert [word.text for word in words] == ["two", "words"]
    assert words[0].confidence == pytest.approx(np.exp(-0.5))


@pytest.mark.parametrize(
    ("text", "log_probability", "complete", "doubtful"),
    [
        ("take two tablets", -0.3, True, False),
        ("take two tablets", -0.3, False, True),
        ("take two tablets", -1.1, True, True),
        ("ha " * 60, -0.1, True, True),
    ],
)
def test_each_guard_fires(text, log_probability, complete, doubtful):
    decoded = Decoded((1, 2), (0.0, 0.0), log_probability, 0.0, complete)
    assert decoded.is_doubtful(text) is doubtful


def test_compression_ratio_of_nothing_is_zero():
    assert compression_ratio("") == 0.0
