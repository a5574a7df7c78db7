"""Per-subject gradients of low-rank adapters at the cost of a plain batch gradient.

Differential privacy at the level of a subject needs one gradient per subject, so that each can be
clipped. For an adapter that gradient is small, and the same matrix products that make the batch
gradient make it, only summed over fewer tokens. This package replaces the adapters' arithmetic by
one autograd function that does so, for linear layers, convolutions, embeddings and stacked experts.

    layers = layers_of(peft_model)
    refuse_unsupported(peft_model, layers)
    engine = PerSubjectEngine(layers)
    with peft_model.disable_adapter():
        engine.verify_rows(loss, rows=len(batch))
        gradients_UD = engine.gradients(loss, row_subject_B, subjects)
"""

from privacy.per_subject.contract import AdapterLayer, GradientError, Routing
from privacy.per_subject.discovery import PeftLayer, layers_of, refuse_unsupported
from privacy.per_subject.engine import PerSubjectEngine

__all__ = [
    "AdapterLayer",
    "GradientError",
    "PeftLayer",
    "PerSubjectEngine",
    "Routing",
    "layers_of",
    "refuse_unsupported",
]
