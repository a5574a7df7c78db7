"""A random Whisper of under a million parameters, for tests that must run in milliseconds.

Same architecture, tokens and file formats as the real ones; only the sizes and the values differ.
Its transcripts are noise, but it trains, routes, saves and loads like the real model.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from model_core.base import SpeechBase, make_base
from model_core.tokens import SpeechTokenizer
from model_core.upcycle import MixtureConfig
from model_core.weights import DecodingRules, Whisper

_CONTROL = ("<|endoftext|>", "<|startoftranscript|>", "<|startofprev|>", "<|notimestamps|>")
_WIDTH = 32
_LAYERS = 2


def nano_tokenizer() -> SpeechTokenizer:
    """One token per UTF-8 byte, then the control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _CONTROL])
    return SpeechTokenizer(tokenizer, multilingual=False)


def nano_whisper(seed: int = 0) -> Whisper:
    """A dense random Whisper; its values are exact in float16, like released checkpoints."""
    tokenizer = nano_tokenizer()
    config = WhisperConfig(
        vocab_size=260,
        d_model=_WIDTH,
        encoder_layers=_LAYERS,
        decoder_layers=_LAYERS,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=2 * _WIDTH,
        decoder_ffn_dim=2 * _WIDTH,
        init_std=0.15,  # large enough that attention and routing differ between inputs
        bos_token_id=tokenizer.end,
        eos_token_id=tokenizer.end,
        pad_token_id=tokenizer.end,
        decoder_start_token_id=tokenizer.start,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = WhisperForConditionalGeneration(config)
    model = model.half().float().requires_grad_(False).eval()
    rules = DecodingRules(
        suppress=(tokenizer.start, tokenizer.previous, tokenizer.no_timestamps),
        begin_suppress=(tokenizer.end,),
    )
    return Whisper(model, tokenizer, rules)


def nano_base(seed: int = 0, mixture: MixtureConfig | None = None) -> SpeechBase:
    """The nano mixture: four experts, half shared, top-1 unless `mixture` says otherwise."""
    return make_base(nano_whisper(seed), mixture or MixtureConfig(seed=seed))


def write_nano_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Write the dense nano Whisper as a Hugging Face folder; returns the folder."""
    whisper = nano_whisper(seed)
    whisper.model.generation_config = GenerationConfig(
        suppress_tokens=list(whisper.rules.suppress),
        begin_suppress_tokens=list(whisper.rules.begin_suppress),
        is_multilingual=False,
    )
    whisper.model.save_pretrained(folder)
    whisper.tokenizer.save(folder / "tokenizer.json")
    return folder
