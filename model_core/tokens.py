"""Whisper's text tokens: transcripts, decoder prefixes and prompts.

A thin layer over the `tokenizers` library. Text is never read as control tokens: a transcript that
spells "<|endoftext|>" is encoded letter by letter, so data cannot steer the decoder.

Token order of a decoder input (Radford et al. 2022, figure 1):
`<|startofprev|> prompt <|startoftranscript|> [<|language|> <|transcribe|>] <|notimestamps|> text`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from model_core.errors import TextError, WeightsError

Task = Literal["transcribe", "translate"]
MAX_PROMPT_TOKENS = 224


class SpeechTokenizer:
    """Text to token ids and back, with the ids of Whisper's control tokens as attributes.

    Attributes:
        multilingual: whether a prefix names a language and a task.
        end: `<|endoftext|>`, which also pads.
        start: `<|startoftranscript|>`.
        previous: `<|startofprev|>`.
        no_timestamps: `<|notimestamps|>`; every id above it is a time.
        no_speech: `<|nospeech|>` (`<|nocaptions|>` in older files), None if there is none.
    """

    def __init__(self, tokenizer: Tokenizer, *, multilingual: bool) -> None:
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.multilingual = multilingual
        self.end = self._control("<|endoftext|>")
        self.start = self._control("<|startoftranscript|>")
        self.previous = self._control("<|startofprev|>")
        self.no_timestamps = self._control("<|notimestamps|>")
        self.no_speech = self._known("<|nospeech|>", "<|nocaptions|>")
        self._first_control = min(self.end, self.start)

    @classmethod
    def from_file(cls, path: Path, *, multilingual: bool) -> SpeechTokenizer:
        """Read a tokenizer.json. Raises WeightsError if it is missing or malformed."""
        try:
            tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:
            raise WeightsError(
                f"the tokenizer {path} cannot be read: {type(error).__name__}",
                remedy="copy tokenizer.json from the original checkpoint into the folder",
            ) from error
        return cls(tokenizer, multilingual=multilingual)

    def save(self, path: Path) -> None:
        """Write tokenizer.json."""
        path.write_text(self._tokenizer.to_str(pretty=True), encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Token ids of a transcript, with the leading space that Whisper was trained on.

        Raises TextError (text-empty) for a text of white space only.
        """
        if not text.strip():
            raise _empty_text()
        return list(self._tokenizer.encode(f" {text.strip()}", add_special_tokens=False).ids)

    def covers(self, text: str, phrase: str) -> list[bool]:
        """For each of `encode(text)`'s tokens, whether it spells part of `phrase` in the text.

        Every occurrence counts, whatever its case. Raises TextError like `encode`.
        """
        encoded_text = f" {text.strip()}"
        if not text.strip():
            raise _empty_text()
        offsets = self._tokenizer.encode(encoded_text, add_special_tokens=False).offsets
        pattern = re.compile(rf"(?<!\w){re.escape(phrase.strip())}(?!\w)", re.IGNORECASE)
        spans = [hit.span() for hit in pattern.finditer(encoded_text)]
        return [
            any(start < span_end and end > span_start for span_start, span_end in spans)
            for start, end in offsets
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; control tokens and times are dropped, white space is trimmed."""
        return self.decode_exactly(ids).strip()

    def decode_exactly(self, ids: Sequence[int]) -> str:
        """Like `decode`, with the white space that the ids spell. Half a character gives U+FFFD."""
        words = [int(token) for token in ids if token < self._first_control]
        return str(self._tokenizer.decode(words, skip_special_tokens=True))

    @property
    def languages(self) -> dict[str, int]:
        """Tokens of the languages that the model knows, by code; none in an English model."""
        known = {code: self._known(f"<|{code}|>") for code in LANGUAGES}
        return {code: token for code, token in known.items() if token is not None}

    def prefix(self, language: str = "en", task: Task = "transcribe") -> tuple[int, ...]:
        """Control tokens before a transcript without timestamps.

        Raises TextError (text-language) for a language that a multilingual model does not know.
        """
        if not self.multilingual:
            return (self.start, self.no_timestamps)
        token = self._known(f"<|{language}|>")
        if token is None:
            raise TextError(
                f"the model knows no language {language!r}",
                remedy="use a two-letter code of Whisper's languages, such as en, fr or zh",
                code="text-language",
            )
        return (self.start, token, self._control(f"<|{task}|>"), self.no_timestamps)

    def prompt(self, terms: Sequence[str]) -> tuple[int, ...]:
        """`<|startofprev|>` and the terms, comma-separated: Whisper's hotword prompt.

        Empty for no terms. Terms beyond Whisper's 224 prompt tokens are left out, last first, so
        that the most important go first.
        """
        ids: list[int] = []
        for index, term in enumerate(terms):
            piece = self.encode(term if index + 1 == len(terms) else f"{term},")
            if len(ids) + len(piece) >= MAX_PROMPT_TOKENS:
                break
            ids.extend(piece)
        return (self.previous, *ids) if ids else ()

    def _known(self, *names: str) -> int | None:
        found = (self._tokenizer.token_to_id(name) for name in names)
        return next((int(token) for token in found if token is not None), None)

    def _control(self, token: str) -> int:
        found = self._known(token)
        if found is None:
            raise WeightsError(
                f"the tokenizer has no {token}",
                remedy="use the tokenizer.json of a Whisper checkpoint",
            )
        return found


def _empty_text() -> TextError:
    return TextError("the text is empty", remedy="give a transcript, or leave the recording out")
