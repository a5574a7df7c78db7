"""The speech side of training: cached encoder states, teacher-forced batches, loss per utterance.

The encoder is frozen, so each recording is encoded once and its states are kept (float16 on disk;
the decoder computes in float32). Nothing here mixes utterances: the loss of a row depends on that
row only, and is divided by that row's own number of tokens, as per-subject gradients demand.

Shape suffixes: B batch, S encoder states, D width, T decoder positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from model_core.augment import Augmentation
from model_core.base import SpeechBase
from model_core.errors import TextError
from model_core.features import encode_mel, log_mel
from model_core.tokens import SpeechTokenizer
from model_core.vocabulary_loss import FrozenVocabularyLoss

_ENCODE_BATCH = 16


@dataclass(frozen=True)
class Example:
    """One utterance's decoder sequence.

    Attributes:
        ids: control prefix, transcript, end.
        weights: of each id as a target, in [0, 1]; 0 for the given prefix, which carries no loss.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]


def make_example(
    tokenizer: SpeechTokenizer,
    text: str,
    *,
    language: str = "en",
    terms: Sequence[str] = (),
    other_weight: float = 1.0,
    max_tokens: int = 448,
) -> Example:
    """Tokenise a transcript for training.

    Where any of `terms` occurs in the text, its tokens weigh 1 and all others `other_weight`, so
    that the clipped gradient is spent on what is to be learnt. A text without any of them weighs 1
    throughout.

    Raises TextError: `text-empty`, or `text-too-long` beyond the decoder's positions.
    """
    prefix = tokenizer.prefix(language)
    words = tokenizer.encode(text)
    ids = (*prefix, *words, tokenizer.end)
    if len(ids) > max_tokens:
        raise TextError(
            f"a transcript of {len(ids)} tokens is longer than the decoder's {max_tokens}",
            remedy="cut the recording and its transcript at a pause",
            code="text-too-long",
        )
    covers = [tokenizer.covers(text, term) for term in terms]
    covered = [any(hits) for hits in zip(*covers, strict=True)]
    if any(covered):
        weights = (*(1.0 if hit else other_weight for hit in covered), other_weight)
    else:
        weights = (1.0,) * (len(words) + 1)
    return Example(ids, (*(0.0,) * len(prefix), *weights))


def collate(examples: Sequence[Example], pad: int) -> tuple[Tensor, Tensor]:
    """Pad to one length: ids [B, T] int64, and each id's weight as a target [B, T] float32."""
    longest = max(len(example.ids) for example in examples)
    ids_BT = torch.full((len(examples), longest), pad)
    weight_BT = torch.zeros(len(examples), longest)
    for row, example in enumerate(examples):
        ids_BT[row, : len(example.ids)] = torch.tensor(example.ids)
        weight_BT[row, : len(example.ids)] = torch.tensor(example.weights)
    return ids_BT, weight_BT


@torch.inference_mode()
def encode(
    base: SpeechBase,
    samples: Sequence[Tensor],
    window_s: float,
    augmentation: Augmentation | None = None,
    keys: Sequence[str] = (),
) -> Tensor:
    """Encoder states of 16 kHz mono clips in one common window: [B, S, D] float16.

    With an augmentation each clip needs its own key, which alone decides what happens to it
    (`model_core.augment`); the window must have room for the slowest speed. Raises AudioError
    (audio-too-long) for a clip that the window would cut.
    """
    mel_bins = base.model.config.num_mel_bins
    if augmentation is not None:
        pairs = zip(samples, keys, strict=True)
        samples = [augmentation.waveform(clip, key) for clip, key in pairs]
    pieces = []
    for start in range(0, len(samples), _ENCODE_BATCH):
        batch = samples[start : start + _ENCODE_BATCH]
        mel_BMT = log_mel(batch, window_s, mel_bins)
        if augmentation is not None:
            rows = zip(mel_BMT, batch, keys[start : start + _ENCODE_BATCH], strict=True)
            mel_BMT = torch.stack(
                [augmentation.spectrum(mel_MT, len(clip), key) for mel_MT, clip, key in rows]
            )
        pieces.append(encode_mel(base.model.model.encoder, mel_BMT).half())
    # A clone outside inference mode may take part in autograd.
    with torch.inference_mode(mode=False):
        return torch.cat(pieces).clone()


def row_losses(
    model: WhisperForConditionalGeneration,
    states_BSD: Tensor,
    ids_BT: Tensor,
    weight_BT: Tensor,
    vocabulary: int | None = None,
) -> Tensor:
    """Cross-entropy of each utterance, averaged over its own targets by their weights: [B].

    Padding needs no attention mask: the decoder is causal and padding comes last. The vocabulary is
    computed only where there is a target, and only its first `vocabulary` entries where all targets
    are known to lie among them. Under `torch.autocast` the products are taken in that precision,
    the losses in float32.
    """
    hidden_BTD = model.model.decoder(
        input_ids=ids_BT[:, :-1], encoder_hidden_states=states_BSD.to(model.dtype), use_cache=False
    ).last_hidden_state
    weight_BT = weight_BT[:, 1:].to(hidden_BTD.dtype)
    rows, columns = weight_BT.nonzero(as_tuple=True)
    loss_N: Tensor = FrozenVocabularyLoss.apply(  # type: ignore[no-untyped-call]
        hidden_BTD[rows, columns], model.proj_out.weight[:vocabulary], ids_BT[:, 1:][rows, columns]
    )
    sums_B = torch.zeros(len(ids_BT), dtype=loss_N.dtype, device=loss_N.device)
    sums_B = sums_B.index_add(0, rows, loss_N * weight_BT[rows, columns])
    return sums_B / weight_BT.sum(1)
