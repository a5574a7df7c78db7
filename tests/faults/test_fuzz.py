"""Every parser of bytes from outside, against spoiled ones: an answer or our own error, no more.

Each runs for a few examples in the slow tests; `make fuzz FUZZ_S=600` gives each that many seconds.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from client_node.decoding.decoder import RecordingDecoder
from model_core.base import SpeechBase
from model_core.errors import ModelCoreError
from privacy.errors import AuricleError
from tests.faults.parsers import Parser, Parsers

pytestmark = [pytest.mark.faults, pytest.mark.slow]
FUZZ_S = float(os.environ.get("AURICLE_FUZZ_S", "0"))
EXAMPLES = 100
MEMORY_BYTES = 256 << 20
OURS = (AuricleError, ModelCoreError)
NAMES = (
    "adapter",
    "basis",
    "bfloat16 update",
    "coordinator's parcel",
    "enrolment",
    "enrolment's answer",
    "envelope of Answer",
    "envelope of ReleaseManifest",
    "envelope of RoundOrder",
    "envelope of RoundPlan",
    "envelope of UpdateHeader",
    "int8 update",
    "invite",
    "job request",
    "ledger export",
    "ledger proof",
    "manifest of CSV",
    "manifest of JSON lines",
    "recording",
    "signed Answer",
    "signed ReleaseManifest",
    "signed RoundOrder",
    "signed RoundPlan",
    "signed UpdateHeader",
    "site's parcel",
    "stored plan",
    "update",
)


@pytest.fixture(scope="module")
def parsers(
    tmp_path_factory: pytest.TempPathFactory, nano: SpeechBase
) -> Iterator[dict[str, Parser]]:
    with RecordingDecoder() as decoder:
        yield Parsers(tmp_path_factory.mktemp("parsers"), nano, decoder).all()


def test_every_parser_is_fuzzed(parsers: dict[str, Parser]) -> None:
    assert tuple(sorted(parsers)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_spoiled_bytes_end_in_an_answer_or_an_error_of_ours_in_bounded_memory(
    parsers: dict[str, Parser], name: str
) -> None:
    parser = parsers[name]

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def read(data: st.DataObject) -> None:
        spoilt = data.draw(parser.bytes_)
        try:
            parser.read(spoilt)
        except (*OURS, *parser.allowed):
            pass

    before, until_s = _peak_bytes(), time.monotonic() + FUZZ_S
    read()
    while time.monotonic() < until_s:
        read()
    assert _peak_bytes() - before < MEMORY_BYTES


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
