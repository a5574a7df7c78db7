"""What expecting words brings and costs: nothing, Whisper's prompt, boosted terms, and both.

Run as `python -m benchmarks.vocabulary [--speakers 20] [--clips 60] [--json]`. Terms and sentences
are the demo's, of speakers and sentences held out from its training (`deploy.demo.corpus`); other
text is every n-th real clip of `../shared/speech/en`, heard while the terms of all sites are
expected, none of which is said. The bonuses (`model_core.term_bias`) were chosen on the demo's
training speakers and every fourth real clip, not on what is reported here.

The headline is the share of terms right with boosted terms, all sites together; the target is twice
that without. Beside it: word error rate on other text within 0.3 points of that without.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.streaming import SHARED, make_model
from deploy.demo.corpus import INSTITUTIONS, site_utterances, synthesise
from model_core.audio import read_audio
from model_core.evaluate import term_accuracy, word_error_rate
from model_core.transcribe import DecodingOptions, Transcriber

ROWS = ("nothing", "prompt", "boosted", "both")
TARGET_TIMES, TARGET_HARM_POINTS = 2.0, 0.3


def options(row: str, terms: tuple[str, ...]) -> DecodingOptions:
    """How a row of the table expects `terms`."""
    return DecodingOptions(
        prompt_terms=terms if row in ("prompt", "both") else (),
        boosted_terms=terms if row in ("boosted", "both") else (),
    )


def measure(row: str, model: Transcriber, speech: list[Any], others: Any) -> dict[str, float]:
    """One row: terms and word errors on the sites' speech, word errors on other text."""
    right = total = 0
    references: list[str] = []
    hypotheses: list[str] = []
    for clips, texts, terms in speech:
        heard = model.asked(options(row, terms)).transcribe_many(clips)
        score = term_accuracy(texts, [each.text for each in heard], terms)
        right, total = right + score.right, total + score.total
        references += texts
        hypotheses += [each.text for each in heard]
    every = tuple(term for institution in INSTITUTIONS for term in institution.terms)
    clips, texts = others
    elsewhere = [each.text for each in model.asked(options(row, every)).transcribe_many(clips)]
    return {
        "terms_right": right,
        "terms_total": total,
        "term_accuracy": right / total,
        "wer": word_error_rate(references, hypotheses),
        "wer_other_text": word_error_rate(texts, elsewhere),
        "false_terms": sum(term in text.lower() for text in elsewhere for term in every),
    }


def site_speech(speakers: int, folder: Path) -> list[tuple[list[Tensor], list[str], Any]]:
    """Each site's held-out recordings, their texts, and its terms."""
    made = []
    for institution in INSTITUTIONS:
        spoken = list(site_utterances(institution, "heldout", speakers))
        target = folder / institution.name
        deque(synthesise(spoken, target, workers=1), maxlen=0)
        clips = [read_audio(target / f"{each.subject}.flac") for each in spoken]
        made.append((clips, [each.text for each in spoken], institution.terms))
    return made


def other_text(count: int) -> tuple[list[Tensor], list[str]]:
    """Real clips, and what is said in them."""
    lines = (SHARED / "speech" / "en.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows = [rows[index * len(rows) // count] for index in range(count)]
    return [read_audio(SHARED / "speech" / r["audio"]) for r in rows], [r["text"] for r in rows]


def run(speakers: int, clips: int) -> dict[str, Any]:
    """The whole table."""
    model = Transcriber(make_model())
    with tempfile.TemporaryDirectory() as folder:
        speech = site_speech(speakers, Path(folder))
    others = other_text(clips)
    rows = {row: measure(row, model, speech, others) for row in ROWS}
    plain, boosted = rows["nothing"], rows["boosted"]
    target = TARGET_TIMES * plain["term_accuracy"]
    harm_points = 100 * (boosted["wer_other_text"] - plain["wer_other_text"])
    return {
        "rows": rows,
        "harm_points": harm_points,
        "harmless": abs(harm_points) <= TARGET_HARM_POINTS,
        "load_average": os.getloadavg()[0],
        "headline": {
            "metric": "boosted_term_accuracy",
            "value": boosted["term_accuracy"],
            "target": target,
            "met": boosted["term_accuracy"] > target,
        },
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--speakers", type=int, default=20, help="held-out speakers of each site")
    parser.add_argument("--clips", type=int, default=60, help="real clips of other text")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    result = run(chosen.speakers, chosen.clips)
    if chosen.json:
        print(json.dumps(result))
        return
    for name, row in result["rows"].items():
        print(
            f"{name:>8}  terms {row['terms_right']:.0f} of {row['terms_total']:.0f}"
            f" ({row['term_accuracy']:.1%})  WER {row['wer']:.1%}"
            f"  other text {row['wer_other_text']:.2%}, {row['false_terms']:.0f} false terms"
        )
    print(f"harm to other text: {result['harm_points']:+.2f} points")
    print(result["headline"])


if __name__ == "__main__":
    main()
