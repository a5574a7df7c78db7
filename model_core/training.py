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
from torch.nn import functional
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from model_core.base import SpeechBase
from model_core.errors import TextError
from model_core.features import encode_mel, log_mel
from model_core.tokens import SpeechTokenizer

_ENCODE_BATCH = 16


@dataclass(frozen=True)
class Example:
    """One utterance's decoder sequence.

    Attributes:
        ids: control prefix, transcript, end.
        prefix_tokens: how many leading ids are given and carry no loss.
    """

    ids: tuple[int, ...]
    prefix_tokens: int


def make_example(
    tokenizer: SpeechTokenizer, text: str, *, language: str = "en", max_tokens: int = 448
) -> Example:
    """Tokenise a transcript for training.

    Raises TextError: `text-empty`, or `text-too-long` beyond the decoder's positions.
    """
    prefix = tokenizer.prefix(language)
    ids = (*prefix, *tokenizer.encode(text), tokenizer.end)
    if len(ids) > max_tokens:
        raise TextError(
            f"a transcript of {len(ids)} tokens is longer than the decoder's {max_tokens}",
            remedy="cut the recording and its transcript at a pause",
            code="text-too-long",
        )
    return Example(ids, len(prefix))


def collate(examples: Sequence[Example], pad: int) -> tuple[Tensor, Tensor]:
    """Pad to one length: ids [B, T] int64, and mask [B, T], true where an id is a target."""
    longest = max(len(example.ids) for example in examples)
    ids_BT = torch.full((len(examples), longest), pad)
    mask_BT = torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, example in enumerate(examples):
        ids_BT[row, : len(example.ids)] = torch.tensor(example.ids)
        mask_BT[row, example.prefix_tokens : len(example.ids)] = True
    return ids_BT, mask_BT


@torch.inference_mode()
def encode(base: SpeechBase, samples: Sequence[Tensor], window_s: float) -> Tensor:
    """Encoder states of 16 kHz mono clips in one common window: [B, S, D] float16.

    Raises AudioError (audio-too-long) for a clip that the window would cut.
    """
    encoder = base.model.model.encoder
    pieces = []
    for start in range(0, len(samples), _ENCODE_BATCH):
        batch = samples[start : start + _ENCODE_BATCH]
        mel_BMT = log_mel(batch, window_s, base.model.config.num_mel_bins)
        pieces.append(encode_mel(encoder, mel_BMT).half())
    # A clone outside inference mode may take part in autograd.
    with torch.inference_mode(mode=False):
        return torch.cat(pieces).clone()


def row_losses(
    model: WhisperForConditionalGeneration, states_BSD: Tensor, ids_BT: Tensor, mask_BT: Tensor
) -> Tensor:
    """Cross-entropy of each utterance, averaged over its own target tokens: [B].

    Padding needs no attention mask: the decoder is causal and padding comes last.
    """
    output = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=states_BSD.float()),
        decoder_input_ids=ids_BT[:, :-1],
        use_cache=False,
    )
    loss_BT = functional.cross_entropy(
        output.logits.transpose(1, 2), ids_BT[:, 1:], reduction="none"
    )
    target_BT = mask_BT[:, 1:].to(loss_BT.dtype)
    return (loss_BT * target_BT).sum(1) / target_BT.sum(1)
