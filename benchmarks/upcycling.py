"""What each mixture keeps, costs and saves against the dense model that it was made from.

    python -m benchmarks.upcycling [--json] [--base tiny.en] [--manifest FILE] [--clips N]

For each variant: parameters, active parameters, FLOPs per second of audio (exact: `auricle base
sizes`), the largest difference of encoder states and logits from the dense model on the recordings,
CPU time of the encoder as a ratio to the dense model's (timed in turns in one process by the CPU
time of its one thread, medians), and the word error rate. `dense-wide` is a dense model with as
many parameters as `upcycled-shared`; its weights are drawn, so it has a time and no error rate.
Without recordings (default: ../shared/speech/en.jsonl) the input is noise and there are no error
rates.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration

from model_core.audio import read_audio
from model_core.base import SpeechBase
from model_core.evaluate import normalise, word_error_rate
from model_core.evaluation import Recording, read_manifest
from model_core.features import encode_mel, log_mel
from model_core.sizes import Size, costs
from model_core.transcribe import Transcriber
from model_core.upcycle import MIXTURES, MixtureConfig, feed_forward_layers, upcycle
from model_core.weights import Whisper, load_whisper, resolve_checkpoint

MANIFEST = Path(__file__).resolve().parents[2] / "shared" / "speech" / "en.jsonl"
SPLITS = {
    f"split {shared:g}+{top_k}/8": MixtureConfig(8, shared, top_k, variant="split")
    for shared, top_k in ((0.25, 6), (0.5, 3), (0.5, 5))
}
VARIANTS: Mapping[str, MixtureConfig | None] = {"dense": None, **MIXTURES, **SPLITS}
WIDE = "dense-wide"
WINDOW_S = 10.0
SHORTEST_WORDS = 4
TARGET = 1e-3


def spoken(manifest: Path, clips: int) -> list[Recording]:
    """Recordings of four words or more without digits, evenly from the manifest; [] without it."""
    if not manifest.is_file():
        return []
    rows = [
        row
        for row in read_manifest(manifest)
        if len(normalise(row.text).split()) >= SHORTEST_WORDS
        and not any(map(str.isdigit, row.text))
    ]
    return rows[:: max(len(rows) // clips, 1)][:clips]


def wider(model: WhisperForConditionalGeneration, factor: float) -> WhisperForConditionalGeneration:
    """The dense model with blocks of `factor` times the hidden units, drawn anew."""
    for layer in feed_forward_layers(model):
        width, hidden = layer.fc1.in_features, round(layer.fc1.out_features * factor)
        layer.fc1, layer.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
    return model.requires_grad_(False).eval()


@torch.inference_mode()
def outputs(model: WhisperForConditionalGeneration, mel_BMT: Tensor) -> tuple[Tensor, Tensor]:
    """Encoder states, and logits of the first text tokens."""
    states_BSD = encode_mel(model.model.encoder, mel_BMT)
    ids_BT = torch.full((len(mel_BMT), 8), model.config.decoder_start_token_id)
    hidden = model.model.decoder(input_ids=ids_BT, encoder_hidden_states=states_BSD)
    return states_BSD, model.proj_out(hidden.last_hidden_state)


@torch.inference_mode()
def encoder_seconds(
    models: Mapping[str, WhisperForConditionalGeneration], mel_BMT: Tensor, repeats: int
) -> dict[str, list[float]]:
    """CPU seconds of one window of one recording, the models in turns; the first turn warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats + 1):
        for name, model in models.items():
            start = time.thread_time()
            encode_mel(model.model.encoder, mel_BMT)
            seconds[name].append(time.thread_time() - start)
    return {name: times[1:] for name, times in seconds.items()}


def measure(
    whisper: Whisper, recordings: Sequence[Recording], repeats: int
) -> list[dict[str, object]]:
    """A row for every variant, the dense model first."""
    config = whisper.model.config
    layers = (config.encoder_layers, config.decoder_layers)
    size = Size(
        config.d_model, layers, config.encoder_attention_heads, config.vocab_size,
        config.num_mel_bins, config.encoder_ffn_dim,
    )  # fmt: skip
    models = {
        name: whisper.model if mixture is None else upcycle(copy.deepcopy(whisper.model), mixture)
        for name, mixture in VARIANTS.items()
    }
    like = MIXTURES["upcycled-shared"]
    factor = like.shared_fraction + like.experts * (1 - like.shared_fraction)
    models[WIDE] = wider(copy.deepcopy(whisper.model), factor)
    clips = [read_audio(recording.audio) for recording in recordings]
    fitting = [clip for clip in clips if len(clip) <= WINDOW_S * 16_000]
    noise = torch.randn(80_000, generator=torch.Generator().manual_seed(0)) * 0.1
    mel_BMT = log_mel(fitting[:8] or [noise], WINDOW_S, config.num_mel_bins)
    states, logits = outputs(whisper.model, mel_BMT)
    times = encoder_seconds(models, mel_BMT[:1], repeats)
    rows: list[dict[str, object]] = []
    for name, model in models.items():
        if name == WIDE:
            cost = costs(dataclasses.replace(size, hidden=round(size.hidden * factor)))
        else:
            cost = costs(size, VARIANTS[name])
        ratios = [mine / dense for mine, dense in zip(times[name], times["dense"], strict=True)]
        row: dict[str, object] = {
            "variant": name,
            "parameters": cost.parameters,
            "active_parameters": cost.active_parameters,
            "gflops_per_s": round(cost.flops_per_s / 1e9, 3),
            "encoder_time_ratio": round(statistics.median(ratios), 3),
        }
        if name != WIDE:
            its_states, its_logits = outputs(model, mel_BMT)
            row["states_difference"] = float((its_states - states).abs().max())
            row["logits_difference"] = float((its_logits - logits).abs().max())
            row["wer"] = error_rate(whisper, model, recordings, clips)
        rows.append(row)
    return rows


def error_rate(
    whisper: Whisper,
    model: WhisperForConditionalGeneration,
    recordings: Sequence[Recording],
    clips: Sequence[Tensor],
) -> float | None:
    """Word error rate with the model's own transcripts; None without recordings."""
    if not recordings:
        return None
    base = SpeechBase(model, whisper.tokenizer, whisper.rules, MixtureConfig(), "")
    heard = Transcriber(base).transcribe_many(clips)
    return word_error_rate([row.text for row in recordings], [each.text for each in heard])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--base", default="tiny.en", help="checkpoint: name, folder or hub id")
    parser.add_argument("--manifest", type=Path, default=MANIFEST, help="recordings to transcribe")
    parser.add_argument("--clips", type=int, default=40, help="how many of them")
    parser.add_argument("--repeats", type=int, default=15, help="timed turns")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    whisper = load_whisper(resolve_checkpoint(arguments.base))
    recordings = spoken(arguments.manifest, arguments.clips)
    rows = measure(whisper, recordings, arguments.repeats)
    exact = [row for row in rows if row["variant"] in ("upcycled-shared", "copied")]
    worst = max(float(str(row["logits_difference"])) for row in exact)
    headline = {
        "metric": "largest difference of logits from the dense model, function-preserving variants",
        "value": worst,
        "target": TARGET,
        "met": worst <= TARGET,
    }
    if arguments.json:
        print(json.dumps({"clips": len(recordings), "rows": rows, "headline": headline}))
        return
    for row in rows:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    print(json.dumps(headline))


if __name__ == "__main__":
    main()
