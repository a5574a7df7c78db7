"""Probe receipts: each round shows on its own step that it is the mechanism accounted for.

draws = ObservedSource(SystemRandomSource())
...                                   # sample, clip, sum, add noise, all drawn from `draws`
receipt = probe(ProbedRound(...), marks).require_passed()
ledger.append("round.trained", {..., "probes": receipt.fields()})
"""

from privacy.probes.gradients import Invented, Loudness, gradient_checks
from privacy.probes.noise import NoiseMarks
from privacy.probes.observed import ObservedSource
from privacy.probes.receipt import (
    PROBES,
    SUITE,
    ProbeError,
    ProbeReceipt,
    ProbeResult,
    require_probed,
)
from privacy.probes.sampler import LotRow, Sample
from privacy.probes.suite import ProbedRound, probe

__all__ = [
    "PROBES",
    "SUITE",
    "Invented",
    "LotRow",
    "Loudness",
    "NoiseMarks",
    "ObservedSource",
    "ProbeError",
    "ProbeReceipt",
    "ProbeResult",
    "ProbedRound",
    "Sample",
    "gradient_checks",
    "probe",
    "require_probed",
]
