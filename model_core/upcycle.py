"""Turn a dense Whisper into a mixture of experts without changing what it computes.

Sparse upcycling (Komatsuzaki et al. 2022) with a shared part: the hidden units of every
feed-forward block are split; the first `shared_fraction` become the shared part, the rest are
copied into E experts of which each token uses `top_k`. Since all experts start equal and the
weights of a token's experts sum to one, the block's output at initialisation equals the dense
block's, whatever the router says, at the same number of active multiplications (top-1).

Whisper's layers compute fc2(activation(fc1(x))). The mixture takes the slot `fc1` and the other
two become identities, so the layers' own forward functions, and with them transformers' caches and
attention kernels, stay as released.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration

from model_core.errors import WeightsError
from model_core.experts import MixtureFeedForward


@dataclass(frozen=True)
class MixtureConfig:
    """How the feed-forward blocks are split.

    Attributes:
        experts: E, routed experts per block.
        shared_fraction: part of the dense block's hidden units that every token uses.
        top_k: experts per token.
        seed: of the routers' random directions.
    """

    experts: int = 4
    shared_fraction: float = 0.5
    top_k: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges. Raises WeightsError."""
        in_range = self.experts >= 1 and 1 <= self.top_k <= self.experts
        if not (in_range and 0 < self.shared_fraction < 1):
            raise WeightsError(
                f"a mixture of {self.experts} experts, top-{self.top_k}, with shared fraction "
                f"{self.shared_fraction} cannot be built",
                remedy="use at least one expert, 1 ≤ top_k ≤ experts and 0 < shared_fraction < 1",
            )


def feed_forward_layers(model: WhisperForConditionalGeneration) -> list[nn.Module]:
    """Every layer that holds a feed-forward block: the encoder's, then the decoder's."""
    return [*model.model.encoder.layers, *model.model.decoder.layers]


def mixtures(model: WhisperForConditionalGeneration) -> list[MixtureFeedForward]:
    """Every mixture block of an upcycled model: the encoder's, then the decoder's."""
    return [layer.fc1 for layer in feed_forward_layers(model)]  # type: ignore[misc]


def upcycle(
    model: WhisperForConditionalGeneration,
    experts: int = 4,
    shared_fraction: float = 0.5,
    top_k: int = 1,
    seed: int = 0,
) -> WhisperForConditionalGeneration:
    """Replace every feed-forward block by a mixture, in place; returns the same model, frozen.

    Router weights are drawn from a generator seeded by `seed` and rounded to float16, so that a
    base stored in half precision is the base that was prepared.
    """
    config = MixtureConfig(experts, shared_fraction, top_k, seed)
    generator = torch.Generator().manual_seed(config.seed)
    for layer in feed_forward_layers(model):
        mixture = _empty_mixture(layer, config)
        _copy_dense(layer, mixture)
        _draw_router(mixture.router.weight, generator)
        _install(layer, mixture)
    return model.requires_grad_(False).eval()


def upcycle_structure(
    model: WhisperForConditionalGeneration, config: MixtureConfig
) -> WhisperForConditionalGeneration:
    """Install mixtures without values, for a model whose state is about to be loaded."""
    for layer in feed_forward_layers(model):
        _install(layer, _empty_mixture(layer, config))
    return model.requires_grad_(False).eval()


def base_sha256(model: nn.Module) -> str:
    """Hex SHA-256 over the sorted (name, dtype, shape, bytes) of a model's tensors.

    A tensor that is tied to another counts once, under the name that sorts first.
    """
    digest = hashlib.sha256()
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in sorted(model.state_dict().items()):
        identity = (tensor.data_ptr(), tensor.shape)
        if identity in seen:
            continue
        seen.add(identity)
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _empty_mixture(layer: nn.Module, config: MixtureConfig) -> MixtureFeedForward:
    fc1 = layer.fc1
    if not isinstance(fc1, nn.Linear):
        raise WeightsError(
            "the model's feed-forward blocks are not dense: it is already a mixture",
            remedy="upcycle the original checkpoint",
        )
    shared_hidden = round(fc1.out_features * config.shared_fraction)
    with torch.device("meta"):
        mixture = MixtureFeedForward(
            width=fc1.in_features,
            shared_hidden=shared_hidden,
            expert_hidden=fc1.out_features - shared_hidden,
            experts=config.experts,
            top_k=config.top_k,
            activation=layer.activation_fn,  # type: ignore[arg-type]
        )
    return mixture.to(fc1.weight.dtype).to_empty(device=fc1.weight.device)


@torch.no_grad()
def _copy_dense(layer: nn.Module, mixture: MixtureFeedForward) -> None:
    fc1: nn.Linear = layer.fc1  # type: ignore[assignment]
    fc2: nn.Linear = layer.fc2  # type: ignore[assignment]
    cut = mixture.shared_up.out_features
    mixture.shared_up.weight.copy_(fc1.weight[:cut])
    mixture.shared_up.bias.copy_(fc1.bias[:cut])
    mixture.shared_down.weight.copy_(fc2.weight[:, :cut])
    mixture.shared_down.bias.copy_(fc2.bias)
    mixture.experts.up_proj.copy_(fc1.weight[cut:].expand_as(mixture.experts.up_proj))
    mixture.experts.up_proj_bias.copy_(fc1.bias[cut:].expand_as(mixture.experts.up_proj_bias))
    mixture.experts.down_proj.copy_(fc2.weight[:, cut:].expand_as(mixture.experts.down_proj))


@torch.no_grad()
def _draw_router(weight_ED: Tensor, generator: torch.Generator) -> None:
    drawn_ED = torch.randn(weight_ED.shape, generator=generator) / weight_ED.shape[1] ** 0.5
    weight_ED.copy_(drawn_ED.half())


def _install(layer: nn.Module, mixture: MixtureFeedForward) -> None:
    layer.fc1, layer.activation_fn, layer.fc2 = mixture, nn.Identity(), nn.Identity()
