"""Both servers of `benchmarks.transcribe`: ours as a site runs it, and faster-whisper behind HTTP.

    python -m benchmarks.transcribe_servers ours|peer PORT THREADS BASE

BASE is a folder of `prepare_base`; the peer reads the same checkpoint as it came.

faster-whisper has no server of its own; the one here is the least that answers OpenAI's client with
json and verbose_json, so that what is timed is its model.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import uvicorn
from fastapi import FastAPI, Form, UploadFile

from client_node.api import ServiceLimits, make_app
from client_node.batcher import Batcher
from client_node.decoding.decoder import RecordingDecoder
from client_node.http.server import server_config
from client_node.recogniser import Recogniser
from client_node.status import SiteStatus
from model_core.base import load_base
from model_core.transcribe import Transcriber
from model_core.weights import resolve_checkpoint

MAX_UPLOAD_BYTES = 256 * 2**20
_BARE = SiteStatus("benchmark", "", 0, 0, 0, "", (), (), 0, None)


class OneModel:
    """The base with its mixture of experts, int8, and no release."""

    release = None

    def __init__(self, folder: Path) -> None:
        self._transcriber = Transcriber(load_base(folder), precision="int8")

    def current(self) -> tuple[str | None, Transcriber]:
        """What serves."""
        return None, self._transcriber


def our_app(base: Path) -> FastAPI:
    """A site's service over the wheel's tiny.en."""
    recogniser = Recogniser(OneModel(base), RecordingDecoder(), Batcher())
    return make_app(
        recogniser,
        lambda: _BARE,
        aliases=["whisper-1"],
        limits=ServiceLimits(upload_bytes=MAX_UPLOAD_BYTES),
    )


def peer_app(threads: int) -> FastAPI:
    """faster-whisper over the same weights: int8, one beam."""
    from faster_whisper import WhisperModel  # the other server does without

    folder = str(resolve_checkpoint(None).folder)
    model = WhisperModel(folder, "cpu", compute_type="int8", cpu_threads=threads)
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/audio/transcriptions")
    def transcriptions(
        file: UploadFile,
        response_format: Annotated[str, Form()] = "json",
        granularities: Annotated[list[str] | None, Form(alias="timestamp_granularities[]")] = None,
    ) -> dict[str, Any]:
        wanted = granularities or ["segment"]
        found, about = model.transcribe(
            file.file, language="en", beam_size=1, word_timestamps="word" in wanted
        )
        segments = list(found)
        text = " ".join(segment.text.strip() for segment in segments)
        if response_format == "json":
            return {"text": text}
        answer: dict[str, Any] = {
            "task": "transcribe",
            "language": "english",
            "duration": about.duration,
            "text": text,
        }
        if "segment" in wanted:
            answer["segments"] = [_segment(segment) for segment in segments]
        if "word" in wanted:
            answer["words"] = [
                {"word": word.word, "start": word.start, "end": word.end}
                for segment in segments
                for word in segment.words
            ]
        return answer

    return app


def _segment(segment: Any) -> dict[str, Any]:
    names = "id seek start end text tokens temperature avg_logprob compression_ratio no_speech_prob"
    return {name: getattr(segment, name) for name in names.split()}


def main() -> None:
    """Serve until ended."""
    which, port, threads, base = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(threads)
    app = our_app(base) if which == "ours" else peer_app(threads)
    uvicorn.Server(server_config(app, "127.0.0.1", port)).run()


if __name__ == "__main__":
    main()
