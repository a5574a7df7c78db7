"""`auricle site status` says what will stop working soon."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding

from client_node.status import collect_status
from model_core.base import SpeechBase
from tests.client_node.harness import Coordinator, Site


def authority(days_left: int) -> bytes:
    """A certificate that ends so soon."""
    key = ed25519.Ed25519PrivateKey.generate()
    name, now = x509.Name([]), datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=100))
        .not_valid_after(now + timedelta(days=days_left, hours=1))
    )
    return made.sign(key, None).public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    ("pem", "said"),
    [
        (authority(31), None),
        (authority(29), "ends in 29 days"),
        (authority(-3), "has ended"),
        (b"spoilt", "cannot be read"),
    ],
    ids=["later", "soon", "over", "spoilt"],
)
def test_the_pinned_authority(
    tmp_path: Path, nano: SpeechBase, coordinator: Coordinator, pem: bytes, said: str | None
) -> None:
    site = Site(tmp_path / "north", nano, coordinator, "")
    site.home.ca.write_bytes(pem)
    warnings = collect_status(site.home).warnings
    site.close()
    assert [said in one for one in warnings] == ([] if said is None else [True])
