"""Faults of accumulation over microbatches, of routing, normalisation and dtype."""

from __future__ import annotations

from client_node.trainer import SpeechTrainer, _pick
from model_core.training import row_losses
from privacy.mechanism import clip_and_sum
from privacy.per_subject import PerSubjectEngine
from privacy.per_subject.discovery import refuse_unsupported
from privacy.per_subject.function import AdapterFunction
from privacy.per_subject.grouping import Rows, Slots, _row_of
from privacy.per_subject.lot import Lot
from tests.mutants.mutant import Edit, Mutant

CASACUBERTA = "Casacuberta et al. 2022, arXiv:2207.10635"
MIRONOV = "Mironov 2012, doi:10.1145/2382196.2382264"
PONOMAREVA = "Ponomareva et al. 2023, arXiv:2303.00654, section 5"
SENSITIVITY, ALONE, SAMPLER = "probe sensitivity", "probe alone-equals-in-batch", "probe sampler"
LAYER_TESTS = "tests/privacy/test_per_subject_layers.py"
REFUSAL_TESTS = "tests/privacy/test_per_subject_refusals.py"

ACCUMULATION = (
    Mutant(
        "clipped-once-a-microbatch",
        "microbatch accumulation",
        "opacus issues 54 and 143: virtual steps clipped and summed on their own",
        (
            Edit(
                Lot._turn_to,
                "stays_P = torch.isin(self._held_P, present_P)",
                "stays_P = torch.zeros_like(self._held_P, dtype=torch.bool)",
            ),
            Edit(Lot.open, "if self._closed_U[present_P].any():", "if False:"),
        ),
        SENSITIVITY,
    ),
    Mutant(
        "microbatch-buffer-not-cleared",
        "microbatch accumulation",
        "opacus pull 203: without zero_grad() a step holds the last one's gradients",
        (Edit(Lot._turn_to, "self._gradients_PD.zero_()", "pass"),),
        SENSITIVITY,
    ),
    Mutant(
        "last-microbatch-dropped",
        "microbatch accumulation",
        "drop_last on a Poisson lot; opacus pull 16",
        (Edit(Lot.finish, "self._turn_to(self._held_P[:0])", "pass"),),
        SENSITIVITY,
    ),
    Mutant(
        "microbatches-counted-twice",
        "microbatch accumulation",
        "opacus pull 203: accumulated without reset",
        (Edit(Lot._turn_to, "self._sum_D += sum_D", "self._sum_D += 2 * sum_D"),),
        SENSITIVITY,
    ),
    Mutant(
        "earlier-microbatch-of-a-subject-lost",
        "microbatch accumulation",
        "opacus issue 54: zero_grad() at every virtual step",
        (Edit(Lot._turn_to, "self._gradients_PD[entries] = kept_PD", "pass"),),
        ALONE,
    ),
    Mutant(
        "gradients-of-the-whole-batch-for-everyone",
        "microbatch accumulation",
        "a layer without a per-sample rule falls back to .grad; opacus issue 841",
        (
            Edit(
                Rows.add_outer,
                "into.index_add_(0, self.row_subject_B, product_Bab)",
                "into.add_(product_Bab.sum(0))",
            ),
            Edit(Rows.__init__, "torch.equal(row_subject_B, counted_B)", "False"),
        ),
        SENSITIVITY,
    ),
    Mutant(
        "later-row-overwrites-earlier",
        "microbatch accumulation",
        "index_put without accumulate",
        (
            Edit(Rows.add_outer, "into.index_add_(0", "into.index_copy_(0"),
            Edit(Rows.__init__, "torch.equal(row_subject_B, counted_B)", "False"),
        ),
        "tests/privacy/test_per_subject.py",
    ),
)

ROUTING = (
    Mutant(
        "tokens-told-by-time-not-by-row",
        "routing",
        "time-first inputs taken for batch-first; opacus batch_first",
        (Edit(_row_of, "return token_S // (tokens // rows)", "return token_S % rows"),),
        SENSITIVITY,
    ),
    Mutant(
        "slots-taken-as-sorted-by-subject",
        "routing",
        "segments read from unsorted slots",
        (Edit(Slots.__init__, "None if in_order else torch.argsort(key_S, stable=True)", "None"),),
        "tests/privacy/test_per_subject.py",
    ),
    Mutant(
        "expert-segments-shifted-by-a-subject",
        "routing",
        "transposed [expert, subject] segments",
        (
            Edit(
                Slots.add_outer,
                "product.view(self.experts, self.subjects, *product.shape[1:])",
                "product.view(self.experts, self.subjects, *product.shape[1:]).roll(1, 1)",
            ),
        ),
        SENSITIVITY,
    ),
    Mutant(
        "capacity-limited-experts-accepted",
        "routing",
        "Hayes et al. 2024, arXiv:2402.05526: a batch's tokens displace another's",
        (
            Edit(
                refuse_unsupported,
                'getattr(module, "expert_capacity", None) is not None',
                "False",
            ),
        ),
        REFUSAL_TESTS,
    ),
    Mutant(
        "dropped-tokens-accepted",
        "routing",
        "Fedus et al. 2021, arXiv:2101.03961: overflowing tokens are dropped",
        (Edit(_row_of, "tokens == 0 or int(uses_N.min()) != int(uses_N.max())", "tokens == 0"),),
        LAYER_TESTS,
    ),
    Mutant(
        "batch-norm-accepted",
        "normalisation",
        "Opacus' ModuleValidator exists for it: Yousefpour et al. 2021, arXiv:2109.12298",
        (
            Edit(
                refuse_unsupported,
                "isinstance(module, _BatchNorm) or remembers",
                "remembers",
            ),
        ),
        REFUSAL_TESTS,
    ),
    Mutant(
        "crossed-rows-not-looked-for",
        "normalisation",
        "statistics of the batch written in code; opacus issue 578",
        (Edit(PerSubjectEngine.verify_rows, "if crossed:", "if False:"),),
        LAYER_TESTS,
    ),
    Mutant(
        "trainable-parameter-outside-the-engine",
        "normalisation",
        "a parameter that trains without DP; dayu11/Differentially-Private-Deep-Learning issue 7",
        (Edit(refuse_unsupported, "if parameter.requires_grad and", "if False and"),),
        REFUSAL_TESTS,
    ),
    Mutant(
        "loss-averaged-over-the-batch",
        "normalisation",
        "pytorch pull 80892: loss_reduction='mean' in per-sample gradients",
        (
            Edit(
                SpeechTrainer._losses,
                "return losses_B * torch.tensor(",
                "return losses_B / len(batch) * torch.tensor(",
            ),
        ),
        SENSITIVITY,
    ),
    Mutant(
        "loss-weighted-by-the-batch",
        "normalisation",
        "hard-example weighting by a batch statistic, which is detached and no gradient shows",
        (
            Edit(
                SpeechTrainer._losses,
                "return losses_B * torch.tensor(",
                "return losses_B * (losses_B / losses_B.mean()).detach() * torch.tensor(",
            ),
        ),
        ALONE,
    ),
    Mutant(
        "loss-averaged-over-the-batch's-tokens",
        "normalisation",
        "cross-entropy's default reduction over all tokens of a padded batch",
        (Edit(row_losses, "sums_B / weight_BT.sum(1)", "sums_B / weight_BT.sum()"),),
        SENSITIVITY,
    ),
    Mutant(
        "sum-divided-by-the-realised-lot",
        "normalisation",
        "opacus issue 420 asks for it: the lot's size is private",
        (
            Edit(SpeechTrainer._clipped_sum, "return attached", "lot = attached"),
            Edit(
                SpeechTrainer._clipped_sum,
                "plan.clipping_norm * (1 - ROUNDING_MARGIN),\n    )",
                "plan.clipping_norm * (1 - ROUNDING_MARGIN),\n    )\n"
                "    return lot[0] / max(1, subjects), lot[1]",
            ),
        ),
        SENSITIVITY,
    ),
)

DTYPE = (
    Mutant(
        "trained-in-bfloat16",
        "dtype",
        f"{MIRONOV}; rows of one batch share its rounding",
        (
            Edit(
                SpeechTrainer._losses,
                "losses_B = row_losses(model, states_BSD, ids_BT, mask_BT, vocabulary)",
                "with torch.autocast('cpu', torch.bfloat16):\n"
                "        losses_B = row_losses(model, states_BSD, ids_BT, mask_BT, vocabulary)",
            ),
        ),
        SENSITIVITY,
    ),
    Mutant(
        "gradients-kept-in-half-precision",
        "dtype",
        CASACUBERTA,
        (
            Edit(
                clip_and_sum,
                "double_D = gradient_D.double()",
                "double_D = gradient_D.half().double()",
            ),
        ),
        "",
        "a subject's own gradient is rounded before it is bounded in double precision: a function "
        "of that subject alone, so that the sensitivity stays",
    ),
    Mutant(
        "sum-kept-in-single-precision",
        "dtype",
        CASACUBERTA,
        (
            Edit(
                clip_and_sum,
                "torch.zeros(gradients_SD.shape[1], dtype=torch.float64",
                "torch.zeros(gradients_SD.shape[1], dtype=torch.float32",
            ),
            Edit(clip_and_sum, "sum_D.add_(double_D,", "sum_D.add_(double_D.float(),"),
        ),
        "tests/privacy/test_mechanism.py",
    ),
    Mutant(
        "adapter-scaling-left-out-of-the-gradient",
        "dtype",
        "Opacus against LoRA: a factor of the forward pass missing backward",
        (
            Edit(
                AdapterFunction.backward,
                "grouping.times_transposed(g_rows, factors.up).mul_(factors.scaling)",
                "grouping.times_transposed(g_rows, factors.up)",
            ),
        ),
        "tests/privacy/test_per_subject.py",
    ),
)

LOT = (
    Mutant(
        "cap-on-recordings-ignored",
        "sampling",
        f"{PONOMAREVA}: contribution bounding",
        (Edit(_pick, "return turned[:cap]", "return turned"),),
        SAMPLER,
    ),
    Mutant(
        "every-recording-a-subject-of-its-own",
        "sampling",
        f"{PONOMAREVA}: the unit is lost on the way from the store to the lot",
        (
            Edit(
                SpeechTrainer._rows,
                "_Row(subject, number, *pair, share=1 / len(ready)) for pair in ready",
                "_Row(subject, len(cohort) * n + number, *pair, share=1 / len(ready)) "
                "for n, pair in enumerate(ready)",
            ),
            Edit(SpeechTrainer._train, "rows, len(cohort), self", "rows, 9 * len(cohort), self"),
        ),
        SAMPLER,
    ),
)

STEP_FAULTS = (*ACCUMULATION, *ROUTING, *DTYPE, *LOT)
