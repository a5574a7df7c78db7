"""The words of the WebSocket: its opening, its events and its errors, as JSON."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client_node.live.errors import LiveError
from client_node.live.events import Event, Final, Partial, SpeechStarted
from client_node.live.pcm import RATE_HZ
from client_node.live.service import Opening


class Start(BaseModel):
    """The first message of a client."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["start"]
    encoding: str = "s16le"
    rate_hz: int = RATE_HZ
    terms: Annotated[list[str], Field(max_length=1000)] = []


class Finish(BaseModel):
    """The last message of a client: no more audio comes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["finish"]


def read_start(text: str) -> Opening:
    """The opening that a first message asks for. Raises LiveError (stream-malformed)."""
    try:
        start = Start.model_validate_json(text)
    except ValidationError:
        raise _malformed('{"type":"start","encoding":"s16le","rate_hz":16000}') from None
    return Opening(start.encoding, start.rate_hz, tuple(start.terms))


def read_finish(text: str) -> None:
    """Check a later text message. Raises LiveError (stream-malformed)."""
    try:
        Finish.model_validate_json(text)
    except ValidationError:
        raise _malformed('audio as binary messages, then {"type":"finish"}') from None


def event_json(event: Event) -> dict[str, Any]:
    """An event as a message."""
    if isinstance(event, SpeechStarted):
        return {
            "type": "speech_started",
            "utterance": event.utterance,
            "at_s": round(event.at_s, 3),
        }
    if isinstance(event, Partial):
        return {
            "type": "partial",
            "utterance": event.utterance,
            "stable": event.stable,
            "tentative": event.tentative,
        }
    return _final_json(event)


def error_json(code: str, message: str) -> dict[str, Any]:
    """An error as a message: OpenAI's shape, as on every other route."""
    kind = "invalid_request_error" if code.startswith("stream-") else "server_error"
    return {
        "type": "error",
        "error": {"message": message, "type": kind, "param": None, "code": code},
    }


def _final_json(event: Final) -> dict[str, Any]:
    return {
        "type": "final",
        "utterance": event.utterance,
        "start_s": round(event.start_s, 3),
        "end_s": round(event.end_s, 3),
        "text": event.text,
        "words": [
            {
                "word": word.text,
                "start_s": round(word.start_s, 3),
                "end_s": round(word.end_s, 3),
                "confidence": round(word.confidence, 4),
            }
            for word in event.words
        ],
        "release": event.release,
    }


def _malformed(expected: str) -> LiveError:
    return LiveError("the message is not understood", remedy=f"send {expected}")
