"""Split a dense feed-forward block's hidden neurons into a shared part and experts, without data.

MoEfication (Zhang et al. 2022): neurons whose input weights point the same way fire together, so
balanced clusters of them make experts, and a token's likeness to a cluster's centre says whether
the expert matters to it. Two additions, both from the weights alone:

* the neurons that contribute most whatever the token form a shared part that always runs. A block
  sees LayerNorm's output, modelled as N(β, diag(γ²)); a neuron's pre-activation is then Gaussian
  and its mean contribution ‖w₂‖·√E[act²] a one-dimensional quadrature;
* what experts contribute in the mean goes into the output bias in the proportion in which they are
  left out, so a token without an expert loses what varies, not what is constant.

Everything is computed in float64 and drawn from a seed: two parties with the same checkpoint make
the same split.

Shape suffixes: F dense hidden neurons, S shared ones, E experts, H neurons of one expert, D width,
Q quadrature points.
"""

# Fields carry shape suffixes like every other tensor name.
# ruff: noqa: N815
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

_ROUNDS = 20
_QUADRATURE_POINTS = 32
_EPSILON = 1e-12

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class NeuronSplit:
    """Which neurons of a dense block go where, and how a token finds its experts.

    Attributes:
        shared_S: int64, neurons that always run.
        expert_EH: int64, neurons of each expert; with `shared_S` a partition of all F.
        router_ED: float32, rows of the router.
        skipped_mean_D: float32, the experts' summed mean output over the tokens that skip them.
    """

    shared_S: Tensor
    expert_EH: Tensor
    router_ED: Tensor
    skipped_mean_D: Tensor


@torch.no_grad()
def cluster_neurons(
    layer: nn.Module, *, shared: int, experts: int, top_k: int, seed: int
) -> NeuronSplit:
    """Split one Whisper layer's block (`final_layer_norm`, `fc1`, `activation_fn`, `fc2`).

    `shared` neurons stay shared; the others, a multiple of `experts`, form equal clusters.
    """
    names = ("fc1.weight", "fc1.bias", "fc2.weight", "final_layer_norm.weight")
    up_FD, up_bias_F, down_DF, gain_D = (_wide(layer, name) for name in names)
    offset_D = _wide(layer, "final_layer_norm.bias")
    mean_F = up_FD @ offset_D + up_bias_F
    deviation_F = (up_FD * gain_D).norm(dim=1)
    activation: Activation = layer.activation_fn  # type: ignore[assignment]
    first_F, second_F = _gaussian_moments(mean_F, deviation_F, activation)
    contribution_F = down_DF.norm(dim=0) * second_F.sqrt()
    order_F = contribution_F.argsort(descending=True, stable=True)
    shared_S, routed = order_F[:shared].sort().values, order_F[shared:].sort().values
    # Likeness is judged where the tokens live: after LayerNorm's gain.
    direction = nn.functional.normalize((up_FD * gain_D)[routed], dim=1)
    expert_EH = routed[balanced_clusters(direction, experts, seed)]
    centre_ED = nn.functional.normalize(up_FD[expert_EH].mean(1), dim=1)
    mean_out_D = down_DF[:, expert_EH.reshape(-1)] @ first_F[expert_EH.reshape(-1)]
    skipped_mean_D = mean_out_D * (1 - top_k / experts)
    return NeuronSplit(shared_S, expert_EH, centre_ED.float(), skipped_mean_D.float())


def balanced_clusters(points_ND: Tensor, clusters: int, seed: int) -> Tensor:
    """Balanced k-means: int64 [clusters, N ÷ clusters], each row sorted; N a multiple of clusters.

    Lloyd's rounds from random points; in each, the nearest (point, centre) pairs are served first
    and a full cluster takes no more.
    """
    count = len(points_ND) // clusters
    generator = torch.Generator().manual_seed(seed)
    first = torch.randperm(len(points_ND), generator=generator)[:clusters]
    centre_CD = points_ND[first]
    assigned_N = torch.full((len(points_ND),), -1)
    for _ in range(_ROUNDS):
        previous_N = assigned_N
        assigned_N = _assign(torch.cdist(points_ND, centre_CD), count)
        if torch.equal(assigned_N, previous_N):
            break
        members = [points_ND[assigned_N == cluster] for cluster in range(clusters)]
        centre_CD = torch.stack([member.mean(0) for member in members])
    return assigned_N.argsort(stable=True).view(clusters, count)


def _assign(distance_NC: Tensor, count: int) -> Tensor:
    points, clusters = distance_NC.shape
    assigned = np.full(points, -1, dtype=np.int64)
    room = np.full(clusters, count)
    pairs = distance_NC.reshape(-1).argsort(stable=True).numpy()
    for point, cluster in zip(pairs // clusters, pairs % clusters, strict=True):
        if assigned[point] < 0 and room[cluster] > 0:
            assigned[point] = cluster
            room[cluster] -= 1
    return torch.from_numpy(assigned)


def _gaussian_moments(
    mean_F: Tensor, deviation_F: Tensor, activation: Activation
) -> tuple[Tensor, Tensor]:
    """E[act(a)] and E[act(a)²] for a ~ N(mean, deviation²), by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_QUADRATURE_POINTS)
    node_Q = torch.from_numpy(nodes)
    weight_Q = torch.from_numpy(weights) / math.sqrt(2 * math.pi)
    value_FQ = activation(mean_F[:, None] + deviation_F[:, None] * node_Q)
    return value_FQ @ weight_Q, (value_FQ.square() @ weight_Q).clamp(min=_EPSILON)


def _wide(layer: nn.Module, name: str) -> Tensor:
    return layer.get_parameter(name).detach().double().cpu()
