"""The model card of a release, as the Hugging Face hub reads one: YAML metadata and Markdown.

A card is a pure function of the signed manifest and plan, so whoever holds the two can make it
again and compare (huggingface.co/docs/hub/model-cards; Mitchell et al. 2019).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from privacy.parcel import ReleaseManifest
from privacy.plan import RoundPlan

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

TASK = "automatic-speech-recognition"
_ADJACENCY = {
    "add_or_remove_one": "one subject more or less at one site",
    "replace_one": "one subject replaced by another at one site",
}

_TEMPLATE = """---
{{ card_data }}
---

# {{ m.release }}

A speech recognition adapter (peft, {{ p.adapter.kind }}, {{ p.adapter.size }} trained numbers) for
one frozen base model, trained in {{ m.rounds }} rounds over {{ p.sites | length }} institutions for
"{{ p.purpose }}". Recordings and transcripts never left the institutions.

## Privacy

{{ privacy }}

| | |
| --- | --- |
| privacy unit | one {{ p.unit }}, with all their recordings |
| neighbouring data sets | {{ adjacency }} |
| mechanism | Poisson-sampled Gaussian: q = {{ p.sampling_rate }}, σ = {{ p.noise_multiplier }}, \
C = {{ p.clipping_norm }}, T = {{ m.rounds }} |
| ε_loc, against everybody | {{ epsilon_loc }} at δ = {{ m.delta }} |
| ε_sec, against readers of this release | {{ epsilon_sec }} at δ = {{ m.delta }}, \
if h = {{ p.honest_sites }} sites are honest |
| the coordinator saw | {{ seen }} |

What this does not show: that an institution as a whole stays unknown (its accent or its drug list
may be learnt); what training on public recordings gave away; or what a subject has spent in all:
whoever took part in other jobs has spent those as well, and the sites' own ledgers compose them.

## Evaluation

{% if m.evaluation -%}
{{ m.evaluation.recordings }} public recordings, measured by the coordinator before it signed.
SHA-256 of the set: `{{ m.evaluation.data_sha256 }}`

| metric | base | base with this release |
| --- | --- | --- |
{% for one in m.evaluation.measured -%}
| {{ one.metric }} | {{ "%.4f" % one.base }} | {{ "%.4f" % one.release }} |
{% endfor %}
{%- else -%}
Nothing was measured before this release was signed.
{% endif %}
It does not show how the release does on any institution's own recordings: each site tries it on its
own canary set before it serves, and those results stay there.

## Where it comes from

| | |
| --- | --- |
| job, plan | `{{ m.job }}`, SHA-256 `{{ m.plan_sha256 }}` |
| base model | SHA-256 `{{ m.base_sha256 }}` |
| adapter | SHA-256 `{{ m.adapter_sha256 }}` |
| replaces | {{ parent }} |
| coordinator's ledger | root `{{ m.tree_head }}` over {{ m.tree_size }} entries |
| signed | {{ m.issued_at }} |

`manifest.dsse.json` beside this file is the signed statement of all of it. Use the adapter with the
base of that hash only; Auricle refuses any other.
"""


def card_text(manifest: ReleaseManifest, plan: RoundPlan) -> str:
    """The card as README.md holds it; the same arguments give the same text."""
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        model_name=manifest.release,
        base_model=manifest.base_model or None,
        license=manifest.license,
        library_name="peft",
        pipeline_tag=TASK,
        tags=["federated-learning", "differential-privacy", "auricle", plan.purpose],
        metrics=[one.metric for one in manifest.evaluation.measured] if manifest.evaluation else [],
        eval_results=_results(manifest),
    )
    card = ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        m=manifest,
        p=plan,
        privacy=_privacy(manifest),
        adjacency=_ADJACENCY[plan.adjacency],
        epsilon_loc=_epsilon(manifest.epsilon_loc),
        epsilon_sec=_epsilon(manifest.epsilon_sec),
        seen=_seen(plan),
        parent="nothing: it is the first"
        if manifest.parent is None
        else f"`{manifest.parent}`, manifest SHA-256 `{manifest.parent_sha256}`",
    )
    return str(card)


def _results(manifest: ReleaseManifest) -> list[EvalResult] | None:
    from huggingface_hub import EvalResult

    evaluation = manifest.evaluation
    if evaluation is None:
        return None
    return [
        EvalResult(
            task_type=TASK,
            dataset_type="public-test-set",
            dataset_name="The coordinator's public test set",
            dataset_revision=evaluation.data_sha256,
            metric_type=one.metric,
            metric_value=one.release,
        )
        for one in evaluation.measured
    ]


def _privacy(manifest: ReleaseManifest) -> str:
    if math.isinf(manifest.epsilon_loc):
        return (
            "**None.** This release was trained without noise: it may reveal what any subject said."
            " It is for comparisons on synthetic recordings only."
        )
    return (
        f"Differentially private: ε_loc = {_epsilon(manifest.epsilon_loc)}, "
        f"ε_sec = {_epsilon(manifest.epsilon_sec)}, δ = {manifest.delta}."
    )


def _epsilon(epsilon: float) -> str:
    return "unbounded" if math.isinf(epsilon) else f"{epsilon:.3f}"


def _seen(plan: RoundPlan) -> str:
    if plan.privacy_mode == "secure-aggregation":
        return "the sum over sites alone, so ε_sec holds against it too, under the plan's h"
    return "each site's noised update, so against it only ε_loc holds"
