"""The forms of the audio API, checked: what a client asks for and cannot be had is refused."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field

ResponseFormat = Literal["json", "text", "srt", "verbose_json", "vtt"]
Granularity = Literal["word", "segment"]
MODEL_ID = "auricle"
MAX_PROMPT_CHARACTERS = 10_000
_TERM_ENDS = re.compile(r"[,;\n]")
_RAW_NAMES = {
    "g722": "g722",
    "ul": "ulaw",
    "ulaw": "ulaw",
    "pcmu": "ulaw",
    "al": "alaw",
    "alaw": "alaw",
    "pcma": "alaw",
}


class TranslationForm(BaseModel):
    """Fields of `POST /v1/audio/translations`."""

    model_config = ConfigDict(extra="forbid")

    file: Annotated[UploadFile, Field(description="The recording, in any usual container.")]
    model: Annotated[str, Field(max_length=256)] = MODEL_ID
    prompt: Annotated[
        str,
        Field(
            max_length=MAX_PROMPT_CHARACTERS,
            description="Words to expect, parted by commas; the first 224 tokens count.",
        ),
    ] = ""
    response_format: ResponseFormat = "json"
    temperature: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The prompt's terms."""
        return tuple(term.strip() for term in _TERM_ENDS.split(self.prompt) if term.strip())

    @property
    def wants_words(self) -> bool:
        """Whether the answer needs words' times."""
        return self.response_format not in ("json", "text")

    @property
    def raw(self) -> str | None:
        """Telephony without a container, told only by the name: G.722, G.711 µ-law or A-law."""
        _, _, ending = (self.file.filename or "").rpartition(".")
        return _RAW_NAMES.get(ending.lower())


class TranscriptionForm(TranslationForm):
    """Fields of `POST /v1/audio/transcriptions`."""

    language: Annotated[
        str | None, Field(max_length=8, description="Code such as en; heard where it is absent.")
    ] = None
    keywords: Annotated[
        list[Annotated[str, Field(max_length=256)]],
        Field(alias="keywords[]", max_length=1000, description="Further words to expect."),
    ] = []
    timestamp_granularities: Annotated[
        list[Granularity], Field(alias="timestamp_granularities[]", max_length=2)
    ] = ["segment"]
    stream: bool = False

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The keywords, then the prompt's terms."""
        return (*(word.strip() for word in self.keywords if word.strip()), *super().vocabulary)
