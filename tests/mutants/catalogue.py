"""Every planted fault."""

from __future__ import annotations

from tests.mutants.chance_faults import CHANCE_FAULTS
from tests.mutants.clipping_faults import CLIPPING
from tests.mutants.spend_faults import SPEND_FAULTS
from tests.mutants.step_faults import STEP_FAULTS

MUTANTS = (*CLIPPING, *STEP_FAULTS, *CHANCE_FAULTS, *SPEND_FAULTS)
