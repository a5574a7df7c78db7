"""The secure sum, pure: the sum for any dropouts that it survives, and else nothing at all."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from privacy.errors import PlanError
from privacy.mechanism import privatise
from privacy.random_source import DeterministicRandomSource
from privacy.secure_aggregation.agreement import SEED_BYTES, commitment
from privacy.secure_aggregation.coordinator import Gathered, add_masked, remove_masks
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.fixed_point import (
    FINENESS,
    FixedPoint,
    add_noise,
    pack_integers,
    to_integers,
    unpack_integers,
)
from privacy.secure_aggregation.setting import Setting
from privacy.secure_aggregation.sharing import combine, split
from privacy.signing import Identity, open_as, seal
from tests.privacy.plans import make_plan
from tests.privacy.secure_sum import STAGES, SecureSum, counted_random, identities, secure_plan

SITES = identities(5)
PLAN = secure_plan(SITES, quorum=3, honest=3)
NEVER = "never"


def integers(plan=PLAN, sites=SITES, seed=0):
    """Integers up to the very bound, of every site."""
    bound = FixedPoint.of(plan).bound
    rng = np.random.default_rng(seed)
    return {s: rng.integers(-bound, bound, plan.adapter.size, endpoint=True) for s in sites}


def code_of(caught: pytest.ExceptionInfo) -> str:
    assert caught.value.remedy
    return caught.value.code


def dropped_by(drops: dict[str, str], stage: str) -> int:
    upto = STAGES[: STAGES.index(stage) + 1]
    return sum(when in upto for when in drops.values())


@settings(max_examples=40, deadline=None)
@given(
    drops=st.fixed_dictionaries({site: st.sampled_from((*STAGES, NEVER)) for site in SITES}),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_sum_is_the_survivors_or_nothing(drops: dict[str, str], seed: int) -> None:
    values = integers(seed=seed)
    run = SecureSum(PLAN, SITES, values, drops, counted_random(seed.to_bytes(8, "big")))
    if len(SITES) - dropped_by(drops, "unmask") < PLAN.quorum:
        with pytest.raises(SecureAggregationError):
            run.run()
        return
    expected = sum(values[site] for site in run.alive("update")) * FixedPoint.of(PLAN).step
    np.testing.assert_array_equal(run.run(), expected)


@pytest.mark.parametrize("stage", ["keys", "shares"])
def test_too_few_before_masking_means_that_no_site_masks(stage: str) -> None:
    drops = dict.fromkeys(list(SITES)[:3], stage)
    run = SecureSum(PLAN, SITES, integers(), drops, os.urandom)
    with pytest.raises(SecureAggregationError) as caught:
        run.run()
    assert code_of(caught) == "secure-roster"
    assert run.masked == {}


def test_too_few_updates_means_that_no_site_confirms() -> None:
    run = SecureSum(PLAN, SITES, integers(), dict.fromkeys(list(SITES)[:3], "update"), os.urandom)
    with pytest.raises(SecureAggregationError) as caught:
        run.run()
    assert code_of(caught) == "secure-survivors"


def test_too_few_confirmations_mean_that_no_site_unmasks() -> None:
    run = SecureSum(PLAN, SITES, integers(), dict.fromkeys(list(SITES)[:3], "confirm"), os.urandom)
    with pytest.raises(SecureAggregationError) as caught:
        run.run()
    assert code_of(caught) == "secure-confirmations"


def test_too_few_shares_do_not_unmask() -> None:
    run = SecureSum(PLAN, SITES, integers(), dict.fromkeys(list(SITES)[:3], "unmask"), os.urandom)
    with pytest.raises(SecureAggregationError) as caught:
        run.run()
    assert code_of(caught) == "secure-sum"


def test_a_masked_update_is_uniform_and_unlike_itself() -> None:
    plan = secure_plan(SITES, quorum=3, honest=3, size=4096)
    zeros = {site: np.zeros(4096, np.int64) for site in SITES}
    words = []
    for _ in range(2):
        run = SecureSum(plan, SITES, zeros, {}, os.urandom)
        np.testing.assert_array_equal(run.run(), 0.0)
        words += [run.setting.fixed_point.read(data) for data in run.masked.values()]
    for one in words:  # 256 equally likely top bytes: χ² with 255 degrees of freedom
        counts = np.bincount(one >> 24, minlength=256)
        assert ((counts - 16.0) ** 2 / 16).sum() < 400  # P < 1e-8
    most = Counter(word for one in words for word in one.tolist()).most_common(1)
    assert most[0][1] <= 4


def test_masks_hide_each_proper_subset_of_the_sites() -> None:
    values = integers()
    run = SecureSum(PLAN, SITES, values, {}, os.urandom)
    run.run()
    for left_out in SITES:
        some = [site for site in SITES if site != left_out]
        total = add_masked((run.masked[site] for site in some), run.setting)
        plain = run.setting.fixed_point.to_words(np.zeros(6, np.int64)) + sum(
            values[site].astype(np.uint32) for site in some
        )
        assert not np.array_equal(total, plain.astype(np.uint32))


def test_one_wrong_share_is_passed_over_and_two_lose_the_sum() -> None:
    run = SecureSum(PLAN, SITES, integers(), {"site-04": "update"}, os.urandom)
    gathered = run.gather()
    orders = run.share(gathered)
    run.mask(orders)
    listed, confirmations = run.confirm(gathered, orders)
    proof = gathered.unmask_order(confirmations)
    sent = {site: run.states[site].unmask(proof) for site in run.alive("unmask")}

    def lie(one):
        return dataclasses.replace(
            one,
            survivor_shares=tuple("00" * SEED_BYTES for _ in one.survivor_shares),
            dropped_shares=tuple("00" * SEED_BYTES for _ in one.dropped_shares),
        )

    masked = add_masked((run.masked[s] for s in listed.survivors), run.setting)
    right = remove_masks(masked, gathered, listed, sent)
    sent["site-01"] = lie(sent["site-01"])
    np.testing.assert_array_equal(remove_masks(masked, gathered, listed, sent), right)
    sent["site-02"] = lie(sent["site-02"])
    with pytest.raises(SecureAggregationError) as caught:
        remove_masks(masked, gathered, listed, sent)
    assert code_of(caught) == "secure-sum"


@given(seed=st.binary(min_size=16, max_size=16), data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_threshold_of_shares_gives_the_seed(seed: bytes, data: st.DataObject) -> None:
    shares = dict(enumerate(split(seed, 3, 6), 1))
    chosen = data.draw(st.sets(st.sampled_from(sorted(shares)), min_size=3))
    assert combine({n: shares[n] for n in chosen}, 3, lambda found: found == seed) == seed
    assert len(set(shares.values()) | {seed}) == 7
    with pytest.raises(SecureAggregationError):
        combine({n: shares[n] for n in list(shares)[:2]}, 3, lambda found: found == seed)


def test_messages_survive_signing() -> None:
    run = SecureSum(PLAN, SITES, integers(), {}, os.urandom)
    gathered = run.gather()
    orders = run.share(gathered)
    run.mask(orders)
    listed, confirmations = run.confirm(gathered, orders)
    operator = Identity.generate()
    proof = gathered.unmask_order(confirmations)
    for message in (gathered.roster(), orders["site-00"], listed, proof):
        assert open_as(type(message), seal(message, operator), (operator.public,)) == message


def test_states_do_not_show_their_secrets() -> None:
    run = SecureSum(PLAN, SITES, integers(), {}, os.urandom)
    gathered = run.gather()
    keyed = run.states["site-00"]
    secrets = (keyed.secrets.mask_seed, keyed.secrets.self_seed)
    run.share(gathered)
    shared = run.states["site-00"]
    for shown in (repr(keyed), repr(shared)):
        assert not any(repr(secret) in shown or secret.hex() in shown for secret in secrets)
        assert repr(shared.own_share) not in shown


def test_keys_are_new_each_round_and_bound_to_it() -> None:
    from privacy.secure_aggregation.site import advertise

    first, second = Setting.of(PLAN, 1), Setting.of(PLAN, 2)
    assert first.session != second.session
    _, once = advertise(first, "site-00", os.urandom)
    _, again = advertise(first, "site-00", os.urandom)
    assert once.mask_public != again.mask_public
    assert commitment(b"0" * 16) != commitment(b"1" * 16)
    old = {site: seal(advertise(first, site, os.urandom)[1], SITES[site]) for site in SITES}
    with pytest.raises(SecureAggregationError):
        Gathered.of(second, old)


# Plans and integers.


@pytest.mark.parametrize(("quorum", "honest"), [(3, 2), (2, 2), (5, 1), (4, 5), (1, 1)])
def test_a_plan_under_which_two_sums_could_be_had_is_refused(quorum: int, honest: int) -> None:
    with pytest.raises(PlanError):
        secure_plan(SITES, quorum, honest)


def test_two_lists_of_survivors_cannot_both_be_confirmed_under_any_plan() -> None:
    for count in range(2, 12):
        sites = identities(count)
        for quorum in range(1, count + 1):
            for honest in range(1, count + 1):
                try:
                    secure_plan(sites, quorum, honest)
                except PlanError:
                    continue
                colluding = quorum - honest
                # Each list needs quorum - colluding honest signers, and none signs twice.
                assert 2 * (quorum - colluding) > count - colluding
                assert honest >= 2


def test_a_secure_plan_needs_a_key_for_each_site_and_others_have_none() -> None:
    for changes in (
        {"site_keys": PLAN.site_keys[:4]},
        {"site_keys": (*PLAN.site_keys[:4], PLAN.site_keys[0])},
        {"site_keys": (*PLAN.site_keys[:4], "zz" * 32)},
        {"privacy_mode": "local-noise"},
        {"noise_multiplier": 0.0},
    ):
        with pytest.raises(PlanError):
            dataclasses.replace(PLAN, **changes)
    with pytest.raises(PlanError):
        Setting.of(make_plan(), 1)
    assert type(PLAN).from_json(PLAN.to_json()) == PLAN


@given(
    sites=st.integers(2, 100),
    sigma=st.floats(0.3, 50),
    norm=st.floats(1e-3, 1e3),
    rate=st.floats(0.001, 1),
    subjects=st.integers(1, 100_000),
)
@example(sites=2, sigma=0.9999999999999999, norm=1.0, rate=0.5, subjects=100)
@settings(max_examples=200, deadline=None)
def test_no_sum_of_integers_wraps(sites, sigma, norm, rate, subjects) -> None:
    plan = make_plan(
        sites=tuple(f"s{n:03d}" for n in range(sites)),
        quorum=sites,
        noise_multiplier=sigma,
        clipping_norm=norm,
        sampling_rate=max(rate, 1e-4),
        expected_subjects=subjects,
    )
    grid = FixedPoint.of(plan)
    deviation = sigma * norm
    assert grid.step * FINENESS <= deviation < 2 * grid.step * FINENESS
    for extreme in (grid.bound, -grid.bound):
        words = grid.to_words(np.full(3, extreme, np.int64))
        total = grid.to_words(np.zeros(3, np.int64))
        for _ in range(sites):
            total = total + words
        np.testing.assert_array_equal(grid.from_words(total), float(extreme * sites) * grid.step)
    lot = 2 * plan.sampling_rate * subjects
    assert grid.bound * grid.step >= norm * lot + 12 * deviation
    with pytest.raises(SecureAggregationError):
        grid.to_words(np.array([grid.bound + 1]))


def test_integers_agree_with_the_plain_update_to_half_a_step() -> None:
    sum_D = torch.linspace(-20, 20, PLAN.adapter.size, dtype=torch.float64)

    def source() -> DeterministicRandomSource:
        return DeterministicRandomSource(b"noise", for_tests=True)

    grid = FixedPoint.of(PLAN)
    integers_D = to_integers(add_noise(sum_D, PLAN, source()), PLAN)
    plain_D = privatise(sum_D, PLAN, source()).double().numpy()
    assert np.abs(integers_D * grid.step - plain_D).max() <= grid.step / 2 + 1e-5
    np.testing.assert_array_equal(unpack_integers(pack_integers(integers_D)), integers_D)


def test_what_is_beyond_the_bound_is_clamped_and_never_wraps() -> None:
    grid = FixedPoint.of(PLAN)
    huge_D = torch.full((PLAN.adapter.size,), 1e12, dtype=torch.float64)
    source = DeterministicRandomSource(b"noise", for_tests=True)
    assert (
        to_integers(add_noise(huge_D, PLAN, source), PLAN).tolist()
        == [grid.bound] * PLAN.adapter.size
    )
    with pytest.raises(PlanError):
        add_noise(huge_D[1:], PLAN, source)
