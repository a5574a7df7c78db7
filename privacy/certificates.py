"""When a certificate ends, and what to say of it 30 days before."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta

from cryptography import x509

WARNING_DAYS = 30


@dataclasses.dataclass(frozen=True)
class Expiry:
    """The end of a certificate: what it is, its last moment (UTC), and how it is replaced."""

    certificate: str
    at: datetime
    remedy: str

    def days_left(self, now: datetime) -> int:
        """Whole days until the end; negative once it has passed."""
        return (self.at - now) // timedelta(days=1)

    def warning(self, now: datetime) -> str:
        """What to say from 30 days before the end; "" until then."""
        days = self.days_left(now)
        if days >= WARNING_DAYS:
            return ""
        end = f"{self.at:%Y-%m-%d}"
        when = f"ends in {days} days, on {end}" if now < self.at else f"has ended on {end}"
        return f"{self.certificate} {when}: {self.remedy}"


def expiry_of(pem: bytes, certificate: str, remedy: str) -> Expiry:
    """The end of the certificate in `pem`. Raises ValueError where there is none."""
    return Expiry(certificate, x509.load_pem_x509_certificate(pem).not_valid_after_utc, remedy)
