# fmt: off
# ruff: noqa
# mypy: ignore-errors
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Request(_message.Message):
    __slots__ = ("start", "audio")
    START_FIELD_NUMBER: _ClassVar[int]
    AUDIO_FIELD_NUMBER: _ClassVar[int]
    start: Start
    audio: bytes
    def __init__(self, start: _Optional[_Union[Start, _Mapping]] = ..., audio: _Optional[bytes] = ...) -> None: ...

class Start(_message.Message):
    __slots__ = ("encoding", "rate_hz", "terms")
    class Encoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        S16LE: _ClassVar[Start.Encoding]
        F32LE: _ClassVar[Start.Encoding]
    S16LE: Start.Encoding
    F32LE: Start.Encoding
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    RATE_HZ_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    encoding: Start.Encoding
    rate_hz: int
    terms: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, encoding: _Optional[_Union[Start.Encoding, str]] = ..., rate_hz: _Optional[int] = ..., terms: _Optional[_Iterable[str]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("speech_started", "partial", "final")
    SPEECH_STARTED_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    speech_started: SpeechStarted
    partial: Partial
    final: Final
    def __init__(self, speech_started: _Optional[_Union[SpeechStarted, _Mapping]] = ..., partial: _Optional[_Union[Partial, _Mapping]] = ..., final: _Optional[_Union[Final, _Mapping]] = ...) -> None: ...

class SpeechStarted(_message.Message):
    __slots__ = ("utterance", "at_s")
    UTTERANCE_FIELD_NUMBER: _ClassVar[int]
    AT_S_FIELD_NUMBER: _ClassVar[int]
    utterance: int
    at_s: float
    def __init__(self, utterance: _Optional[int] = ..., at_s: _Optional[float] = ...) -> None: ...

class Partial(_message.Message):
    __slots__ = ("utterance", "stable", "tentative")
    UTTERANCE_FIELD_NUMBER: _ClassVar[int]
    STABLE_FIELD_NUMBER: _ClassVar[int]
    TENTATIVE_FIELD_NUMBER: _ClassVar[int]
    utterance: int
    stable: str
    tentative: str
    def __init__(self, utterance: _Optional[int] = ..., stable: _Optional[str] = ..., tentative: _Optional[str] = ...) -> None: ...

class Final(_message.Message):
    __slots__ = ("utterance", "start_s", "end_s", "text", "words", "release")
    UTTERANCE_FIELD_NUMBER: _ClassVar[int]
    START_S_FIELD_NUMBER: _ClassVar[int]
    END_S_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    utterance: int
    start_s: float
    end_s: float
    text: str
    words: _containers.RepeatedCompositeFieldContainer[Word]
    release: str
    def __init__(self, utterance: _Optional[int] = ..., start_s: _Optional[float] = ..., end_s: _Optional[float] = ..., text: _Optional[str] = ..., words: _Optional[_Iterable[_Union[Word, _Mapping]]] = ..., release: _Optional[str] = ...) -> None: ...

class Word(_message.Message):
    __slots__ = ("word", "start_s", "end_s", "confidence")
    WORD_FIELD_NUMBER: _ClassVar[int]
    START_S_FIELD_NUMBER: _ClassVar[int]
    END_S_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    word: str
    start_s: float
    end_s: float
    confidence: float
    def __init__(self, word: _Optional[str] = ..., start_s: _Optional[float] = ..., end_s: _Optional[float] = ..., confidence: _Optional[float] = ...) -> None: ...
