"""Faults of accounting, of the budget, and of going on after a crash."""

from __future__ import annotations

from client_node.private_round import PrivateRounds
from privacy import accountant, loss_distribution
from privacy.accountant import Composition, MechanismEvent
from privacy.budget import Budget
from privacy.ledger_events import TrainedRound
from privacy.ledger_spend import Spend
from privacy.plan import RoundPlan
from tests.mutants.mutant import Edit, Mutant

CHUA = "Chua et al. 2024, arXiv:2403.17673"
WANG = "Wang, Balle and Kasiviswanathan 2019, arXiv:1808.00087"
ACCOUNTANT_TESTS = "tests/privacy/test_accountant.py"
BUDGET_TESTS = "tests/privacy/test_budget.py"
VERIFY_TESTS = "tests/privacy/test_ledger_verify.py"
CRASH_TESTS = "tests/client_node/test_crash.py"


def _accounting(
    name: str, source: str, edit: Edit, killer: str = ACCOUNTANT_TESTS, why: str = ""
) -> Mutant:
    return Mutant(name, "accounting", source, (edit,), killer, why)


ACCOUNTING = (
    _accounting(
        "rate-halved-in-the-accountant",
        "opacus issue 813: another q accounted for than sampled",
        Edit(
            Composition._compose,
            "one = (sampling_rate, noise_multiplier)",
            "one = (sampling_rate / 2, noise_multiplier)",
        ),
    ),
    _accounting(
        "rounds-not-composed",
        "ε of one step printed for all",
        Edit(Composition._compose, "add(single, interval, count)", "add(single, interval, 1)"),
    ),
    _accounting(
        "divergences-taken-too-small",
        "Koskela et al. 2020, arXiv:1906.03049: a lower bound taken for an upper one",
        Edit(
            loss_distribution._pmf,
            "np.clip(deltas_L, 0, 1)",
            "np.clip(0.98 * deltas_L, 0, 1)",
        ),
    ),
    _accounting(
        "delta-spent-once-a-round",
        "δ for each round, and as if for all",
        Edit(
            Composition.epsilon,
            "self._composed.epsilon(delta),",
            "self._composed.epsilon(delta * 10),",
        ),
    ),
    _accounting(
        "second-opinion-not-asked",
        f"{WANG}: two accountants that disagree",
        Edit(Composition.epsilon, "raise _disagreement(pld, rdp)", "pass"),
    ),
    _accounting(
        "honest-sites-counted-without-root",
        "noise of h sites adds in variance",
        Edit(MechanismEvent.summed, "math.sqrt(honest_sites)", "honest_sites"),
    ),
    _accounting(
        "one-sigma-step-too-small",
        "off by one in a search for the least noise",
        Edit(
            accountant.noise_multiplier_for,
            "_sigma(_smallest_within(",
            "_sigma(-1 + _smallest_within(",
        ),
    ),
    _accounting(
        "replace-one-taken-for-add-or-remove",
        "replace-one accounted for as add-or-remove: Ponomareva et al. 2023, section 2.1.1",
        Edit(
            Composition.add,
            "event.adjacency == REPLACE_ONE and not self._replace_one",
            "False",
        ),
        "tests/privacy/test_composition.py",
    ),
    _accounting(
        "no-noise-costs-nothing",
        "σ = 0 skipped in place of infinite",
        Edit(Composition.epsilon, "return math.inf", "return 0.0"),
    ),
    _accounting(
        "divisor-of-one-site-fewer",
        "the coordinator's average; post-processing, so quality and not privacy",
        Edit(RoundPlan.divisor.fget, "len(self.sites) *", "max(1, len(self.sites) - 1) *"),
        "",
        "the average changes and no guarantee does: it is taken after the noise",
    ),
)

BUDGET = (
    Mutant(
        "only-committed-rounds-count",
        "accounting",
        "a crash gives its budget back",
        (
            Edit(
                Budget._events,
                "ReservationRow.site == self.site, which",
                "ReservationRow.site == self.site, which, ReservationRow.committed",
            ),
        ),
        BUDGET_TESTS,
    ),
    Mutant(
        "cap-checked-before-this-round",
        "accounting",
        "the last round overdraws",
        (
            Edit(
                Budget._check_caps,
                "[*self._events(session, which), _event(plan, rounds)]",
                "self._events(session, which)",
            ),
        ),
        BUDGET_TESTS,
    ),
    Mutant(
        "budget-of-every-job-its-own",
        "accounting",
        "ε reset by a new experiment",
        (
            Edit(
                Budget._check_caps,
                "ReservationRow.purpose == plan.purpose",
                "ReservationRow.job == plan.job",
            ),
        ),
        BUDGET_TESTS,
    ),
    Mutant(
        "ledger-derives-from-trained-rounds-only",
        "accounting",
        "an auditor who believes that a crash showed nothing",
        (
            Edit(
                Spend.derive,
                "for run in self._runs.values()]",
                "for key, run in self._runs.items() if key in self._trained]",
            ),
        ),
        VERIFY_TESTS,
    ),
    Mutant(
        "claims-not-compared",
        "accounting",
        "ε stored and believed",
        (Edit(Spend.train, "self._check_claims(trained)", "pass"),),
        VERIFY_TESTS,
    ),
    Mutant(
        "missing-probes-not-missed",
        "accounting",
        "the auditor's check of probes broken",
        (
            Edit(
                TrainedRound.from_fields,
                "if trained.plan_format != PLAN_FORMAT_V1:",
                "if False:",
            ),
        ),
        "tests/client_node/test_probed_rounds.py",
    ),
)

RESUME = (
    Mutant(
        "round-drawn-again-after-a-crash",
        "resume",
        "a retried step draws new noise for the same sum: the average of both is less noisy",
        (Edit(PrivateRounds.run, "if not reservation.fresh:", "if False:"),),
        CRASH_TESTS,
    ),
    Mutant(
        "trained-before-reserved",
        "resume",
        "spend recorded after the fact and lost with the process",
        (
            Edit(
                PrivateRounds.run,
                "reservation = self._budget.reserve(plan, order.round)",
                "self._train(plan, basis, order.round, vector, range(0, 9))\n"
                "    reservation = self._budget.reserve(plan, order.round)",
            ),
        ),
        CRASH_TESTS,
    ),
    Mutant(
        "training-not-on-the-ledger",
        "resume",
        "an update leaves that no entry tells of",
        (Edit(PrivateRounds.run, "self._ledger.append(TRAINED, claims.fields() | bound)", "pass"),),
        "tests/client_node/test_agent.py",
    ),
)

SPEND_FAULTS = (*ACCOUNTING, *BUDGET, *RESUME)
