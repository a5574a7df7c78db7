"""Faults of clipping."""

from __future__ import annotations

from client_node.trainer import SpeechTrainer
from client_node.weights import require_bounded, require_trainable
from privacy.mechanism import clip_and_sum, privatise
from tests.mutants.mutant import Edit, Mutant

ABADI = "Abadi et al. 2016, arXiv:1607.00133, algorithm 1"
TRAMER = "Tramèr et al. 2022, arXiv:2202.12219"
CASACUBERTA = "Casacuberta et al. 2022, arXiv:2207.10635"
MIRONOV = "Mironov 2012, doi:10.1145/2382196.2382264"
PONOMAREVA = "Ponomareva et al. 2023, arXiv:2303.00654, section 5"
SENSITIVITY = "probe sensitivity"
ATTACK = "tests/attacks/test_sensitivity.py"

_ALPHA = "alpha=min(1.0, clipping_norm / norm) if norm else 1.0"
_NORM = "norm = float(torch.dot(double_D, double_D).sqrt())"


def _clip(name: str, source: str, *pairs: tuple[str, str], killer: str = SENSITIVITY) -> Mutant:
    edits = tuple(Edit(clip_and_sum, old, new) for old, new in pairs)
    return Mutant(name, "clipping", source, edits, killer)


CLIPPING = (
    _clip("gradients-not-clipped", ABADI, (_ALPHA, "alpha=1.0")),
    _clip(
        "clipping-norm-ignored",
        "opacus pull 664: fast gradient clipping ignored max_grad_norm",
        (_ALPHA, "alpha=min(1.0, 1.0 / norm) if norm else 1.0"),
    ),
    _clip(
        "clipped-to-twice-the-norm",
        "tensorflow/privacy issue 620: sensitivity doubles, noise does not",
        (_ALPHA, "alpha=min(1.0, 2 * clipping_norm / norm) if norm else 1.0"),
    ),
    _clip("clipped-by-largest-entry", CASACUBERTA, (_NORM, "norm = float(double_D.abs().max())")),
    _clip(
        "clipped-by-sum-of-entries",
        "L1 for L2: Dwork and Roth 2014, section 3.5",
        (_NORM, "norm = float(double_D.abs().sum())"),
    ),
    _clip(
        "clipped-by-root-mean-square",
        "mean for sum in the norm; tensorflow/privacy issue 135",
        (_NORM, "norm = float(double_D.square().mean().sqrt())"),
    ),
    _clip(
        "norm-without-root",
        "squared norm compared with the norm's bound",
        (_NORM, "norm = float(torch.dot(double_D, double_D))"),
    ),
    _clip(
        "each-half-clipped-to-the-whole-norm",
        "per-layer clipping with the full norm for each layer: McMahan et al. 2018, "
        "arXiv:1812.06210",
        (
            "sum_D.add_(double_D, " + _ALPHA + ")",
            "[p.add_(q, alpha=min(1.0, clipping_norm / (float(q.norm()) or 1.0))) "
            "for p, q in zip(sum_D.chunk(2), double_D.chunk(2), strict=True)]",
        ),
    ),
    _clip(
        "first-subject-not-clipped",
        "off by one",
        (_ALPHA, "alpha=min(1.0, clipping_norm / norm) if norm and subject else 1.0"),
    ),
    _clip(
        "sum-clipped-instead-of-subjects",
        f"{TRAMER}: the batch's gradient was clipped, not each example's",
        (_ALPHA, "alpha=1.0"),
        (
            "return sum_D, norms_S",
            "return sum_D * min(1.0, clipping_norm / (float(sum_D.norm()) or 1.0)), norms_S",
        ),
    ),
    _clip(
        "small-gradients-lifted-to-the-norm",
        "normalised, not clipped; doubles replace-one sensitivity at every subject: "
        "Bu et al. 2023, arXiv:2206.07136",
        (_ALPHA, "alpha=clipping_norm / norm if norm else 1.0"),
    ),
    Mutant(
        "norm-in-half-precision",
        "clipping",
        f"{MIRONOV}; {CASACUBERTA}: overflow",
        (Edit(clip_and_sum, _NORM, "norm = float(double_D.half().norm())"),),
        SENSITIVITY,
    ),
    _clip(
        "undefined-gradient-summed",
        CASACUBERTA,
        ("if math.isfinite(norm):", "if True:"),
        killer="tests/privacy/test_mechanism.py",
    ),
    Mutant(
        "noisy-sum-clipped-and-not-the-subjects",
        "clipping",
        ABADI,
        (
            Edit(clip_and_sum, _ALPHA, "alpha=1.0"),
            Edit(
                privatise,
                "return (sum_D.double() + noise_D)",
                "return (sum_D * min(1.0, plan.clipping_norm / (float(sum_D.norm()) or 1)) "
                "+ noise_D)",
            ),
        ),
        SENSITIVITY,
    ),
    Mutant(
        "recordings-clipped-instead-of-subjects",
        "clipping",
        f"{PONOMAREVA}: example-level clipping under a user-level claim",
        (
            Edit(
                SpeechTrainer._steps,
                "torch.tensor([row.subject for row in batch])",
                "torch.arange(start, end)",
            ),
            Edit(
                SpeechTrainer._clipped_sum,
                "subjects,\n        plan",
                "len(rows),\n        plan",
            ),
        ),
        SENSITIVITY,
    ),
    Mutant(
        "no-room-for-rounding",
        "clipping",
        CASACUBERTA,
        (Edit(SpeechTrainer._clipped_sum, "(1 - ROUNDING_MARGIN)", "1.0"),),
        SENSITIVITY,
    ),
    Mutant(
        "weights-of-any-size",
        "clipping",
        f"{CASACUBERTA}: rounding as large as the sum",
        (
            Edit(require_trainable, "np.abs(weights_D) <= MAX_WEIGHT", "np.abs(weights_D) >= 0"),
            Edit(require_bounded, "if not bool((delta <= limit).all())", "if False"),
        ),
        ATTACK,
    ),
)
