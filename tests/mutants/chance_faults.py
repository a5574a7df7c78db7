"""Faults of the noise, of the random source behind it, and of sampling."""

from __future__ import annotations

from client_node.noise_marks import StoredMarks
from client_node.store import SiteStore
from client_node.trainer import SpeechTrainer
from privacy.mechanism import privatise
from privacy.random_source import SystemRandomSource, _KeystreamSource
from tests.mutants.mutant import Edit, Mutant

ABADI = "Abadi et al. 2016, arXiv:1607.00133, algorithm 1"
TRAMER = "Tramèr et al. 2022, arXiv:2202.12219"
MIRONOV = "Mironov 2012, doi:10.1145/2382196.2382264"
HANEY = "Haney et al. 2022, arXiv:2207.13793"
HOLOHAN = "Holohan and Braghin 2021, arXiv:2107.10138"
GARFINKEL = "Garfinkel and Leclerc 2020, arXiv:2009.03777"
CHUA = "Chua et al. 2024, arXiv:2403.17673"
ANNAMALAI = "Annamalai et al. 2024, arXiv:2411.10614"
NOISE, SAMPLER = "probe noise", "probe sampler"
SOURCE_TESTS = "tests/privacy/test_random_source.py"

_DRAW = "source.normal(plan.adapter.size)"
_SCALE = "(plan.noise_multiplier * plan.clipping_norm)"


def _noise(name: str, source: str, *pairs: tuple[str, str], killer: str = NOISE) -> Mutant:
    return Mutant(name, "noise", source, tuple(Edit(privatise, *pair) for pair in pairs), killer)


NOISE_FAULTS = (
    _noise("noise-left-out", ABADI, ("sum_D.double() + noise_D", "sum_D.double() + 0 * noise_D")),
    _noise(
        "noise-left-out-of-an-empty-lot",
        "opacus issue 161: what an empty Poisson batch is answered with",
        ("noise_D = ", "noise_D = 0 if not sum_D.any() else "),
    ),
    _noise(
        "noise-without-the-clipping-norm",
        "opacus issue 753: the scale of noise added by hand",
        (_SCALE, "plan.noise_multiplier"),
    ),
    _noise(
        "variance-for-standard-deviation",
        "tensorflow/privacy issue 88: N for √N",
        (_SCALE, "(plan.noise_multiplier * plan.clipping_norm) ** 2"),
    ),
    _noise(
        "noise-divided-by-the-lot",
        "tensorflow/privacy issue 153: noise for the average added to the sum",
        (_SCALE, "(plan.noise_multiplier * plan.clipping_norm / plan.expected_subjects)"),
    ),
    _noise(
        "noise-divided-among-honest-sites",
        "distributed noise without secure aggregation: Kairouz et al. 2021, arXiv:2102.06387",
        (_SCALE, "(plan.noise_multiplier * plan.clipping_norm / 2 ** 0.5)"),
    ),
    _noise(
        "one-noise-value-for-all-numbers",
        "a scalar draw that broadcasts",
        (_DRAW, "source.normal(1).expand(plan.adapter.size)"),
    ),
    _noise(
        "noise-repeated-in-both-halves",
        "one key for two tensors: jax.random without split",
        (_DRAW, "source.normal(plan.adapter.size // 2).repeat(2)"),
    ),
    _noise(
        "noise-drawn-twice-and-cancelled-in-part",
        f"{TRAMER}: noise added at two places, with opposite sign",
        ("return (sum_D.double() + noise_D)", "return (sum_D + noise_D - 0.5 * noise_D)"),
    ),
    _noise(
        "noise-from-the-model's-generator",
        f"{GARFINKEL}; Opacus without secure_mode",
        (_DRAW, "torch.randn(plan.adapter.size, dtype=torch.float64)"),
    ),
    _noise(
        "noise-from-a-fixed-seed",
        f"{TRAMER}; torch.manual_seed for a repeatable run",
        (
            _DRAW,
            "torch.randn(plan.adapter.size, generator=torch.Generator().manual_seed(0), "
            "dtype=torch.float64)",
        ),
    ),
    _noise(
        "uniform-noise",
        "another law of the same variance",
        (_DRAW, "(torch.special.ndtr(source.normal(plan.adapter.size)) - 0.5) * 12 ** 0.5"),
    ),
    _noise(
        "noise-cut-at-two-sigma",
        "truncated, so that outliers do not spoil training; no (ε, δ) of a Gaussian holds",
        (_DRAW, "source.normal(plan.adapter.size).clamp(-2, 2)"),
    ),
    _noise(
        "noise-on-a-coarse-grid",
        f"{MIRONOV}; {HANEY}",
        (_DRAW, "source.normal(plan.adapter.size).mul(8).round().div(8)"),
    ),
    _noise("noise-in-half-precision", HANEY, (_DRAW, f"{_DRAW}.half().double()")),
    _noise(
        "update-rounded-to-half-precision-before-noise",
        f"{HANEY}: precision of the sum",
        ("return (sum_D.double() + noise_D)", "return (sum_D.double().half() + noise_D)"),
    ),
)

SOURCE_FAULTS = (
    Mutant(
        "key-that-never-changes",
        "RNG reuse",
        "a zero counter under one key: NIST SP 800-38A, appendix B",
        (Edit(SystemRandomSource._key, "return os.urandom(32)", "return bytes(32)"),),
        NOISE,
    ),
    Mutant(
        "key-from-the-call-count",
        "RNG reuse",
        "a generator seeded alike at every start of the program",
        (
            Edit(
                SystemRandomSource._key,
                "return os.urandom(32)",
                "self.calls = getattr(self, 'calls', 0) + 1; return bytes([self.calls]) * 32",
            ),
        ),
        NOISE,
    ),
    Mutant(
        "key-of-few-bits",
        "RNG reuse",
        f"{GARFINKEL}: a 32-bit seed can be tried out",
        (Edit(SystemRandomSource._key, "os.urandom(32)", "os.urandom(4) + bytes(28)"),),
        "",
        "no statistic of the output shows it: a keystream under a guessable key looks like any "
        "other. A test would have to replace os.urandom and count bytes, which tests the line and "
        "not the behaviour; review is what guards it",
    ),
    Mutant(
        "single-box-muller-value",
        "RNG reuse",
        f"{HOLOHAN}: one value's grid shows in the low bits of the sum",
        (
            Edit(
                _KeystreamSource.normal,
                "values.view(_SUMMED, size).sum(dim=0) / math.sqrt(_SUMMED)",
                "values.view(_SUMMED, size)[0]",
            ),
        ),
        "",
        "the law is the same and the fault lies in which doubles can occur at all, which needs "
        "2**50 draws to see; the sum of four is a line to review",
    ),
    Mutant(
        "noise-in-single-precision",
        "dtype",
        MIRONOV,
        (
            Edit(
                _KeystreamSource.normal,
                "values.view(_SUMMED, size).sum(dim=0) / math.sqrt(_SUMMED)",
                "(values.view(_SUMMED, size).sum(dim=0) / math.sqrt(_SUMMED)).float()",
            ),
        ),
        NOISE,
    ),
    Mutant(
        "three-values-divided-as-four",
        "noise",
        "the wrong root in a sum of Gaussians",
        (
            Edit(
                _KeystreamSource.normal,
                "values.view(_SUMMED, size).sum(dim=0)",
                "values.view(_SUMMED, size)[:2].sum(dim=0)",
            ),
        ),
        NOISE,
    ),
    Mutant(
        "angle-and-radius-from-the-same-word",
        "RNG reuse",
        "Box-Muller with correlated uniforms: Neave 1973, doi:10.2307/2346773",
        (
            Edit(
                _KeystreamSource.normal,
                "2.0 * math.pi * uniforms[pairs:]",
                "2.0 * math.pi * uniforms[:pairs]",
            ),
        ),
        NOISE,
    ),
    Mutant(
        "marks-of-noise-forgotten",
        "RNG reuse",
        "the probe itself broken",
        (Edit(StoredMarks.note, "return not before", "return True"),),
        "tests/client_node/test_probed_rounds.py",
    ),
)

_THRESHOLD = "threshold = int(rate * 2.0**64)"
_CHOSEN = "chosen = self._words(n) <= np.uint64(threshold - 1)"


def _sampler(
    name: str, source: str, *pairs: tuple[str, str], killer: str = SAMPLER, why: str = ""
) -> Mutant:
    edits = tuple(Edit(_KeystreamSource.poisson_sample, *pair) for pair in pairs)
    return Mutant(name, "sampling", source, edits, killer, why)


def _lot(name: str, source: str, *pairs: tuple[str, str], killer: str = SAMPLER) -> Mutant:
    edits = tuple(Edit(SpeechTrainer._train, *pair) for pair in pairs)
    return Mutant(name, "sampling", source, edits, killer)


_OWN_DRAW = "chosen = draws.poisson_sample(len(subjects), plan.sampling_rate)"

SAMPLING_FAULTS = (
    _sampler(
        "lots-of-a-fixed-size",
        f"{CHUA}; opacus pull 128",
        (_CHOSEN, "chosen = self._words(n).argsort().argsort() < round(n * rate)"),
    ),
    _sampler(
        "twice-the-rate",
        "opacus issue 813: the rate of another data set",
        (_THRESHOLD, "threshold = min(2**64 - 1, int(2 * rate * 2.0**64))"),
    ),
    _sampler(
        "the-same-lot-every-round",
        f"{ANNAMALAI}: one seed for every epoch",
        (_CHOSEN, "chosen = np.random.default_rng(0).random(n) < rate"),
    ),
    _sampler(
        "sampled-with-replacement",
        "Balle et al. 2018, arXiv:1807.01647: another amplification",
        (
            "return [int(index) for index in np.flatnonzero(chosen)]",
            "return sorted(int(word % np.uint64(n)) for word in self._words(round(n * rate) + 1))",
        ),
    ),
    _sampler(
        "neighbours-sampled-together",
        "sampling of shards in place of subjects",
        (_CHOSEN, "chosen = np.repeat(self._words(n // 2 + 1), 2)[:n] <= np.uint64(threshold - 1)"),
    ),
    _sampler(
        "later-subjects-favoured",
        "WeightedRandomSampler: opacus issue 813",
        (_CHOSEN, "chosen = self._words(n) <= np.linspace(0.2, 1, n) * float(threshold - 1)"),
    ),
    _sampler(
        "rate-rounded-up",
        "a threshold one too high",
        ("np.uint64(threshold - 1)", "np.uint64(threshold)"),
        killer="",
        why="a rate higher by 2**-64 is beyond any test, and by as much beyond any effect",
    ),
    _lot(
        "empty-lots-drawn-again",
        "opacus issue 161: resampling changes every subject's rate",
        (
            _OWN_DRAW,
            _OWN_DRAW + "\n    while not chosen and subjects:\n        " + _OWN_DRAW,
        ),
    ),
    _lot(
        "everybody-trains",
        "amplification claimed and not done: Balle et al. 2018, arXiv:1807.01647",
        ("cohort = [subjects[index] for index in chosen]", "cohort = list(subjects)"),
    ),
    _lot(
        "shuffled-batches",
        f"{CHUA}: shuffling accounted for as Poisson sampling",
        (
            _OWN_DRAW,
            "chosen = sorted(torch.randperm(len(subjects)).tolist()[: "
            "round(len(subjects) * plan.sampling_rate)])",
        ),
    ),
    _lot(
        "a-subject-twice-in-the-lot",
        "lots joined from two loaders",
        (
            "cohort = [subjects[index] for index in chosen]",
            "cohort = [subjects[index] for index in chosen] * 2",
        ),
    ),
    _lot(
        "rate-of-the-expected-number",
        "opacus pull 814: q from the loader's length",
        (
            _OWN_DRAW,
            "chosen = draws.poisson_sample(len(subjects), min(1.0, 1.5 * plan.sampling_rate))",
        ),
    ),
    Mutant(
        "withdrawn-subjects-still-sampled",
        "sampling",
        "GDPR, article 7(3)",
        (Edit(SiteStore.trainable_subjects, "SubjectRow.consent.is_(True),", ""),),
        "",
        "consent is asked for twice: a withdrawn subject may be drawn, and `training_recordings` "
        "then has nothing of theirs, so that no number changes",
    ),
    _lot(
        "probes-asked-and-not-heeded",
        "the probe itself broken",
        (".require_passed()", ""),
        killer="tests/client_node/test_probed_rounds.py",
    ),
)

CHANCE_FAULTS = (*NOISE_FAULTS, *SOURCE_FAULTS, *SAMPLING_FAULTS)
