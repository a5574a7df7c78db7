"""Turn a dense Whisper into a mixture of experts: one dial, three variants.

Sparse upcycling (Komatsuzaki et al. 2022) and its reverse. Per feed-forward block:

* `upcycled-shared`: the first `shared_fraction` of the hidden units become the shared part, the
  rest are copied into E experts of which each token uses `top_k`. Since all experts start equal and
  the weights of a token's experts sum to one, the output at initialisation equals the dense
  block's, whatever the router says, at the same number of active multiplications (top-1);
* `copied`: the same without a shared part: E copies of the whole block, the most capacity at equal
  compute;
* `split`: the units are shared out, not copied (`model_core.split`): a shared part and E clusters,
  of which each token runs `top_k`. Fewer active units, so less compute; equal to the dense block
  where `top_k` is E, an approximation to be distilled below that.

Whisper's layers compute fc2(activation(fc1(x))). The mixture takes the slot `fc1` and the other
two become identities, so the layers' own forward functions, and with them transformers' caches and
attention kernels, stay as released.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration

from model_core.errors import WeightsError
from model_core.experts import MixtureFeedForward
from model_core.split import cluster_neurons

Variant = Literal["upcycled-shared", "copied", "split"]
_ALIGNMENT = 8  # units; grouped matrix products want strides of 16 bytes in float16 too


@dataclass(frozen=True)
class MixtureConfig:
    """How the feed-forward blocks are split. `mixture_named` has a good one of each variant.

    Attributes:
        experts: E, routed experts per block.
        shared_fraction: part of the dense block's hidden units that every token uses; 0 for
            `copied`, a lower bound for `split`, whose experts have a multiple of 8 units.
        top_k: experts per token.
        seed: of the routers' random directions, and of the clusters of `split`.
        variant: what becomes of the units that are not shared.
        decoder_top_k: experts per token in the decoder; 0 for as many as in the encoder. A `split`
            with all of them there runs the decoder as released, which costs little: its blocks
            are a hundredth of the work on short clips.
    """

    experts: int = 4
    shared_fraction: float = 0.5
    top_k: int = 1
    seed: int = 0
    variant: Variant = "upcycled-shared"
    decoder_top_k: int = 0

    def __post_init__(self) -> None:
        """Check ranges. Raises WeightsError."""
        known = self.variant in get_args(Variant)
        top_ks = (self.top_k, self.decoder_top_k or self.top_k)
        in_range = self.experts >= 1 and all(1 <= top_k <= self.experts for top_k in top_ks)
        if self.variant == "copied":
            shares = self.shared_fraction == 0
        else:
            shares = 0 < self.shared_fraction < 1
        if not (known and in_range and shares):
            raise WeightsError(
                f"a mixture {self.variant} of {self.experts} experts, top-{self.top_k}, with "
                f"shared fraction {self.shared_fraction} cannot be built",
                remedy="use at least one expert, 1 ≤ top_k ≤ experts and 0 < shared_fraction < 1 "
                f"(0 for copied); the variants are {', '.join(get_args(Variant))}",
            )

    def in_decoder(self) -> MixtureConfig:
        """The mixture of the decoder's own blocks."""
        return dataclasses.replace(self, top_k=self.decoder_top_k or self.top_k, decoder_top_k=0)

    def sizes(self, hidden: int) -> tuple[int, int]:
        """Units of the shared part and of one expert, for a dense block of `hidden` units.

        Raises WeightsError where an expert would have none.
        """
        shared = round(hidden * self.shared_fraction)
        if self.variant != "split":
            return shared, hidden - shared
        each = (hidden - shared) // self.experts
        each = each // _ALIGNMENT * _ALIGNMENT or each
        if each == 0:
            raise WeightsError(
                f"{hidden - shared} hidden units cannot be split among {self.experts} experts",
                remedy="ask for fewer experts",
            )
        return hidden - each * self.experts, each


MIXTURES: Mapping[str, MixtureConfig] = MappingProxyType(
    {
        "upcycled-shared": MixtureConfig(),
        "copied": MixtureConfig(shared_fraction=0.0, variant="copied"),
        "split": MixtureConfig(experts=8, shared_fraction=0.25, top_k=3, variant="split"),
    }
)


def mixture_named(name: str) -> MixtureConfig:
    """The mixture of a variant's name. Raises WeightsError for an unknown one."""
    found = MIXTURES.get(name)
    if found is None:
        raise WeightsError(
            f"there is no mixture {name!r}", remedy=f"choose one of {', '.join(MIXTURES)}"
        )
    return found


def feed_forward_layers(model: WhisperForConditionalGeneration) -> list[nn.Module]:
    """Every layer that holds a feed-forward block: the encoder's, then the decoder's."""
    return [*model.model.encoder.layers, *model.model.decoder.layers]


def mixtures(model: WhisperForConditionalGeneration) -> list[MixtureFeedForward]:
    """Every mixture block of an upcycled model: the encoder's, then the decoder's."""
    return [layer.fc1 for layer in feed_forward_layers(model)]  # type: ignore[misc]


def upcycle(
    model: WhisperForConditionalGeneration, config: MixtureConfig | None = None
) -> WhisperForConditionalGeneration:
    """Replace every feed-forward block by a mixture, in place; returns the same model, frozen.

    Router weights are drawn from a generator seeded by the configuration (for `split` they are the
    clusters' centres) and rounded to float16, so that a base stored in half precision is the base
    that was prepared.
    """
    config = config or MixtureConfig()
    generator = torch.Generator().manual_seed(config.seed)
    for layer, own in _configured_layers(model, config):
        mixture = _empty_mixture(layer, own)
        if own.variant == "split":
            _split_dense(layer, mixture, own)
        else:
            _copy_dense(layer, mixture)
            _draw_router(mixture.router.weight, generator)
        _install(layer, mixture)
    return model.requires_grad_(False).eval()


def upcycle_structure(
    model: WhisperForConditionalGeneration, config: MixtureConfig
) -> WhisperForConditionalGeneration:
    """Install mixtures without values, for a model whose state is about to be loaded."""
    for layer, own in _configured_layers(model, config):
        _install(layer, _empty_mixture(layer, own))
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


def _configured_layers(
    model: WhisperForConditionalGeneration, config: MixtureConfig
) -> list[tuple[nn.Module, MixtureConfig]]:
    """Every layer with its own mixture."""
    encoder, decoder = model.model.encoder.layers, model.model.decoder.layers
    in_decoder = config.in_decoder()
    return [(layer, config) for layer in encoder] + [(layer, in_decoder) for layer in decoder]


def _empty_mixture(layer: nn.Module, config: MixtureConfig) -> MixtureFeedForward:
    fc1 = layer.fc1
    if not isinstance(fc1, nn.Linear):
        raise WeightsError(
            "the model's feed-forward blocks are not dense: it is already a mixture",
            remedy="upcycle the original checkpoint",
        )
    shared_hidden, expert_hidden = config.sizes(fc1.out_features)
    with torch.device("meta"):
        mixture = MixtureFeedForward(
            width=fc1.in_features,
            shared_hidden=shared_hidden,
            expert_hidden=expert_hidden,
            experts=config.experts,
            top_k=config.top_k,
            weighting="sum" if config.variant == "split" else "mean",
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
def _split_dense(layer: nn.Module, mixture: MixtureFeedForward, config: MixtureConfig) -> None:
    fc1: nn.Linear = layer.fc1  # type: ignore[assignment]
    fc2: nn.Linear = layer.fc2  # type: ignore[assignment]
    split = cluster_neurons(
        layer,
        shared=mixture.shared_up.out_features,
        experts=config.experts,
        top_k=config.top_k,
        seed=config.seed,
    )
    mixture.shared_up.weight.copy_(fc1.weight[split.shared_S])
    mixture.shared_up.bias.copy_(fc1.bias[split.shared_S])
    mixture.shared_down.weight.copy_(fc2.weight[:, split.shared_S])
    mixture.shared_down.bias.copy_(fc2.bias + split.skipped_mean_D.half())
    mixture.experts.up_proj.copy_(fc1.weight[split.expert_EH])
    mixture.experts.up_proj_bias.copy_(fc1.bias[split.expert_EH])
    mixture.experts.down_proj.copy_(fc2.weight.t()[split.expert_EH].transpose(1, 2))
    mixture.router.weight.copy_(split.router_ED.half())


@torch.no_grad()
def _draw_router(weight_ED: Tensor, generator: torch.Generator) -> None:
    drawn_ED = torch.randn(weight_ED.shape, generator=generator) / weight_ED.shape[1] ** 0.5
    weight_ED.copy_(drawn_ED.half())


def _install(layer: nn.Module, mixture: MixtureFeedForward) -> None:
    layer.fc1, layer.activation_fn, layer.fc2 = mixture, nn.Identity(), nn.Identity()
