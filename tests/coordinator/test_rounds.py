"""The round's state machine: no interleaving of events breaks what a round promises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator.errors import RoundError
from coordinator.rounds import (
    Aggregated,
    ClockRead,
    OrdersSent,
    Reopened,
    RoundState,
    SiteRefused,
    UpdateAdmitted,
    advance,
)

SITES = ("a", "b", "c", "d")
DEADLINE_S = 100.0


def opened(quorum: int = 2) -> RoundState:
    return RoundState(1, frozenset(SITES), quorum, DEADLINE_S)


def after(state: RoundState, *events) -> RoundState:
    for event in events:
        state = advance(state, event)
    return state


def test_waits_for_slow_sites_although_the_quorum_is_there():
    state = after(opened(), OrdersSent(), UpdateAdmitted("a"), UpdateAdmitted("b"), ClockRead(99))
    assert state.status == "collecting"
    assert state.missing == ("c", "d")


def test_deadline_closes_with_quorum_and_names_stragglers():
    admitted = (UpdateAdmitted("a"), UpdateAdmitted("c"))
    state = after(opened(), OrdersSent(), *admitted, ClockRead(DEADLINE_S))
    assert state.status == "aggregating"
    assert state.missing == ("b", "d")


def test_deadline_below_quorum_abandons():
    state = after(opened(), OrdersSent(), UpdateAdmitted("a"), ClockRead(DEADLINE_S))
    assert state.status == "abandoned"
    assert state.missing == ("b", "c", "d")


def test_abandons_at_once_when_the_quorum_is_out_of_reach():
    refusals = [SiteRefused(site, "budget-exceeded") for site in "abc"]
    assert after(opened(), OrdersSent(), *refusals).status == "abandoned"


def test_all_answers_close_the_round_before_the_deadline():
    events = [UpdateAdmitted("a"), UpdateAdmitted("b"), UpdateAdmitted("c"), SiteRefused("d", "x")]
    assert after(opened(), OrdersSent(), *events).status == "aggregating"


def test_reopening_keeps_updates_and_asks_the_refused_again():
    events = [OrdersSent(), UpdateAdmitted("a"), SiteRefused("b", "x"), ClockRead(DEADLINE_S)]
    state = after(opened(), *events, Reopened(200.0))
    assert state.status == "open"
    assert state.attempt == 2
    assert state.admitted == {"a"}
    assert state.missing == ("b", "c", "d")


@pytest.mark.parametrize("event", [UpdateAdmitted("a"), SiteRefused("a", "x"), OrdersSent()])
@pytest.mark.parametrize("quorum", [1, 4])
def test_a_closed_round_takes_nothing_more(event, quorum):
    closed = after(opened(quorum), OrdersSent(), UpdateAdmitted("b"), ClockRead(DEADLINE_S))
    if closed.status == "aggregating":
        closed = advance(closed, Aggregated())
    with pytest.raises(RoundError) as caught:
        advance(closed, event)
    assert caught.value.code == "round-closed"


@pytest.mark.parametrize("event", [UpdateAdmitted("a"), SiteRefused("a", "x")])
def test_a_site_answers_once(event):
    with pytest.raises(RoundError) as caught:
        after(opened(), OrdersSent(), UpdateAdmitted("a"), event)
    assert caught.value.code == "site-not-awaited"


@given(st.text())
def test_an_unexpected_site_is_never_taken(name):
    state = after(opened(), OrdersSent())
    if name in SITES:
        assert advance(state, UpdateAdmitted(name)).admitted == {name}
    else:
        with pytest.raises(RoundError):
            advance(state, UpdateAdmitted(name))


class RoundMachine(RuleBasedStateMachine):
    """Drives one round by arbitrary events and holds it to its promises."""

    @initialize(quorum=st.integers(1, len(SITES)))
    def open(self, quorum):
        self.state = opened(quorum)
        self.given: set[str] = set()
        self.now_s = 0.0

    def _try(self, event):
        before = self.state
        try:
            self.state = advance(before, event)
        except RoundError:
            assert self.state == before
            return False
        return True

    @rule()
    def send(self):
        self._try(OrdersSent())

    @rule(site=st.sampled_from(SITES))
    def admit(self, site):
        if self._try(UpdateAdmitted(site)):
            assert site not in self.given
            self.given.add(site)

    @rule(site=st.sampled_from(SITES))
    def refuse(self, site):
        self._try(SiteRefused(site, "x"))

    @rule(step_s=st.floats(0, 150))
    def clock(self, step_s):
        self.now_s += step_s
        self._try(ClockRead(self.now_s))

    @precondition(lambda self: self.state.status == "aggregating")
    @rule()
    def aggregate(self):
        assert self._try(Aggregated())

    @precondition(lambda self: self.state.status == "abandoned")
    @rule()
    def reopen(self):
        assert self._try(Reopened(self.now_s + DEADLINE_S))

    @invariant()
    def no_update_is_lost_or_invented(self):
        assert self.state.admitted == self.given

    @invariant()
    def closes_only_with_quorum(self):
        if self.state.status in ("aggregating", "released"):
            assert len(self.state.admitted) >= self.state.quorum

    @invariant()
    def every_site_is_accounted_for(self):
        refused = {site for site, _ in self.state.refused}
        missing = set(self.state.missing)
        assert self.state.admitted | refused | missing == set(SITES)
        assert not self.state.admitted & refused
        assert not missing & refused

    @invariant()
    def waits_only_while_it_makes_sense(self):
        if self.state.status == "collecting":
            assert self.state.missing


TestRoundMachine = RoundMachine.TestCase
