"""Log-mel features and the encoder on short windows.

Whisper pads every clip to 30 s. Here the spectrogram is that of the zero-padded clip, as in
training, but cut shortly after the clip's end, and the encoder runs on what is left with the first
positions. Its convolutions and attention accept any length; only transformers' length check forbids
it. Cut so and left alone, the model does not find the end and repeats itself: `silent_tail` gives
it the silence back (docs/model.md, "Short windows").

Shape suffixes: B batch, M mel bins, T mel frames (10 ms), S encoder states (20 ms), D width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers.audio_utils import mel_filter_bank
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from model_core.audio import RATE_HZ
from model_core.errors import AudioError

FFT_SAMPLES = 400
HOP_SAMPLES = 160
EDGE_SAMPLES = FFT_SAMPLES // 2  # a frame's centre lies that far behind its first sample
MAX_WINDOW_S = 30.0
MARGIN_S = 1.0
CUT_MARGIN_S = 3.0
MIN_CUT_WINDOW_S = 10.0
FRAMES_PER_STATE = 2
_ROUNDING_FRAMES = 1e-6  # 4.52 s are 452 frames, although 4.52 * 100 < 452
FRAMES_PER_S = RATE_HZ // HOP_SAMPLES
STATES_PER_S = FRAMES_PER_S // FRAMES_PER_STATE
_FLOOR = 1e-10
_DYNAMIC_RANGE_LOG10 = 8.0


def window_s(samples: int) -> float:
    """Seconds of window for a clip whose silence is remembered: the clip and 1 s, at most 30 s."""
    return min(samples / RATE_HZ + MARGIN_S, MAX_WINDOW_S)


def cut_window_s(samples: int) -> float:
    """Seconds of window for an encoder that only cuts: the clip and 3 s, at least 10, at most 30.

    Shorter, and the model repeats itself (docs/model.md, "Short windows").
    """
    return min(max(samples / RATE_HZ + CUT_MARGIN_S, MIN_CUT_WINDOW_S), MAX_WINDOW_S)


def window_frames(duration_s: float) -> int:
    """Mel frames in a window, even so that the encoder's stride divides them."""
    frames = int(min(duration_s, MAX_WINDOW_S) * FRAMES_PER_S + _ROUNDING_FRAMES)
    return frames // FRAMES_PER_STATE * FRAMES_PER_STATE


@functools.cache
def mel_filters(mel_bins: int) -> Tensor:
    """Whisper's triangular filters over the power spectrum: [M, F]."""
    bank_FM = mel_filter_bank(
        num_frequency_bins=1 + FFT_SAMPLES // 2,
        num_mel_filters=mel_bins,
        min_frequency=0.0,
        max_frequency=RATE_HZ / 2,
        sampling_rate=RATE_HZ,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(bank_FM).float().t().contiguous()


def log_mel(clips: Sequence[Tensor], duration_s: float, mel_bins: int = 80) -> Tensor:
    """Whisper's log-mel of 16 kHz mono clips, each zero-padded, cut at `duration_s`: [B, M, T].

    Equal to the first frames of Whisper's features of the clip padded to 30 s. Each clip is
    normalised by its own maximum, so clips of a batch do not touch each other. Raises AudioError
    (audio-too-long) for a clip that the window would cut.
    """
    frames = window_frames(duration_s)
    require_fits(max(clip.shape[-1] for clip in clips), duration_s)
    # One transform more than is cut, so that no kept frame sees the reflected edge.
    length = min(frames * HOP_SAMPLES + FFT_SAMPLES, int(MAX_WINDOW_S * RATE_HZ))
    padded_BN = torch.stack([functional.pad(c, (0, length - c.shape[-1])) for c in clips])
    edges = (EDGE_SAMPLES, EDGE_SAMPLES)
    reflected_BN = functional.pad(padded_BN[:, None], edges, mode="reflect")[:, 0]
    return compress(log_power(reflected_BN, mel_bins)[..., :frames])


def require_fits(samples: int, duration_s: float) -> None:
    """Raise AudioError (audio-too-long) for a clip that a window would cut."""
    if samples > window_frames(duration_s) * HOP_SAMPLES:
        raise AudioError(
            f"a clip of {samples / RATE_HZ:.2f} s does not fit a window of {duration_s:.2f} s",
            remedy="choose a longer window (at most 30 s), or cut the recording at a pause",
            code="audio-too-long",
        )


def log_power(samples_BN: Tensor, mel_bins: int) -> Tensor:
    """log₁₀ of mel power of every whole frame that starts in the samples: [B, N] → [B, M, T]."""
    window = torch.hann_window(FFT_SAMPLES)
    spectrum = torch.stft(
        samples_BN, FFT_SAMPLES, HOP_SAMPLES, window=window, center=False, return_complex=True
    )
    return (mel_filters(mel_bins) @ spectrum.abs() ** 2).clamp(min=_FLOOR).log10()


def compress(log_BMT: Tensor) -> Tensor:
    """Whisper's scale: each clip's 80 dB below its own peak, to about [-1, 1]."""
    peak_B11 = log_BMT.amax(dim=(1, 2), keepdim=True)
    return (torch.maximum(log_BMT, peak_B11 - _DYNAMIC_RANGE_LOG10) + 4.0) / 4.0


def encode_mel(
    encoder: WhisperEncoder, mel_BMT: Tensor, frames_B: Sequence[int] | None = None
) -> Tensor:
    """Run Whisper's encoder on windows of any even number of frames: [B, M, T] → [B, S, D].

    `frames_B` says how many frames of each row are its window; None means all. What comes after
    does not reach the window's states, and states beyond it mean nothing. On 3000 frames the
    result equals `encoder.forward`.
    """
    x_BSD = encoder_stem(encoder, mel_BMT, frames_B)
    bias_B11S = None
    if frames_B is not None and min(frames_B) < mel_BMT.shape[-1]:
        lengths = [frames // FRAMES_PER_STATE for frames in frames_B]
        bias_B11S = padding_bias(lengths, x_BSD.shape[1])[:, None, None]
    for layer in encoder.layers:
        x_BSD = layer(x_BSD, bias_B11S)
    return cast(Tensor, encoder.layer_norm(x_BSD))


def encoder_stem(
    encoder: WhisperEncoder, mel_BMT: Tensor, frames_B: Sequence[int] | None = None
) -> Tensor:
    """What comes before the encoder's layers: convolutions and positions, [B, M, T] → [B, S, D]."""
    if frames_B is not None and min(frames_B) < mel_BMT.shape[-1]:
        inside_BT = torch.arange(mel_BMT.shape[-1]) < torch.tensor(frames_B)[:, None]
        # Each convolution reads one frame past the window, where a lone window has zeros.
        x_BDT = functional.gelu(encoder.conv1(mel_BMT * inside_BT[:, None])) * inside_BT[:, None]
    else:
        x_BDT = functional.gelu(encoder.conv1(mel_BMT))
    x_BSD = functional.gelu(encoder.conv2(x_BDT)).transpose(1, 2)
    return cast(Tensor, x_BSD + encoder.embed_positions.weight[: x_BSD.shape[1]])


def padding_bias(lengths: Sequence[int], states: int) -> Tensor:
    """0 for each row's real states and -inf for padding: [B, S]."""
    padded_BS = torch.arange(states) >= torch.tensor(lengths)[:, None]
    return torch.zeros(len(lengths), states).masked_fill(padded_BS, -torch.inf)
