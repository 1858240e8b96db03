"""A feed-forward network made of experts: routing, selection, expert computation, what is added."""

# T tokens, D d_model, E experts, K selected experts

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_runner.moe.backends import BACKENDS, choose_backend
from moe_runner.moe.experts import Experts, combine_matrix
from moe_runner.moe.hypernet import HyperExpert
from moe_runner.moe.inference import backend_of, infer
from moe_runner.moe.losses import (
    importance_and_load_loss,
    load_by_probabilities,
    load_of_probabilities,
    smooth_load,
    stack_losses,
    switch_balance_loss,
    total,
    z_loss,
)
from moe_runner.moe.one_token import one_token
from moe_runner.moe.records import Records, Routing
from moe_runner.moe.routing import (
    AverageKeyRouter,
    Scores,
    Select,
    Weighting,
    expert_weights,
    select_experts,
    within_capacity,
    within_sequence_capacity,
)

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Capacity:
    """How many choices an expert takes; what is over is dropped.

    Args:
        factor: of the batch, see `within_capacity`; None: no limit.
        per_sequence: see `within_sequence_capacity`; None: no limit.
        dropped: a dropped token's output from its experts: `zero`, or its `input` times the weight.
    """

    factor: float | None = None
    per_sequence: int | None = None
    dropped: Literal["zero", "input"] = "zero"


@dataclass(frozen=True)
class AuxiliaryLosses:
    """Which losses a layer records, and their coefficients (applied by `auxiliary_loss`).

    Args:
        coefficients: by name; a name that is absent is not computed. `balance`: importance and
            load, of `importance`; `switch_balance` and `z`: of Switch Transformers.
        importance: what is summed over the tokens: the weights of the `selected` experts, or the
            `probabilities` of all.
        load: `published`: see `smooth_load`; `hypermoe` and `emoe`: that of the authors' code, see
            `load_by_probabilities` and `load_of_probabilities`.
        stack: layers that name the same one share one loss of each kind, see `stack_losses`; None:
            every layer has its own.
    """

    coefficients: Mapping[str, float] = field(default_factory=dict)
    importance: Literal["selected", "probabilities"] = "selected"
    load: Literal["published", "hypermoe", "emoe"] = "published"
    stack: str | None = None


class SideExperts(nn.Module):
    """Experts beside the routed ones, of weight 1: one that sees every token, or one per expert.

    Args:
        experts: a single one, or as many as are routed (a token passes those of its selection).
        scale: multiplies the output.
    """

    def __init__(self, experts: Experts, scale: float = 1.0) -> None:
        super().__init__()
        self.experts = experts
        self.scale = scale

    def forward(self, x_TD: Tensor, index_TK: Tensor, masked: bool = False) -> Tensor:
        """Compute the side experts' output.

        Args:
            x_TD: tokens, float (T, D).
            index_TK: selected experts, int64 (T, K).
            masked: use the back end `masked` instead of the fastest.

        Returns:
            float (T, D).
        """
        if self.experts.num_experts == 1:
            index_TK = torch.zeros_like(index_TK[:, :1])
        backend = "masked" if masked else fast_backend(x_TD, index_TK, self.experts)
        return compute(x_TD, index_TK, None, self.experts, backend) * self.scale


class MoEFeedForward(nn.Module):
    """Stand where an FFN stood: y = sum over the selected experts of weight * expert(x) [+ beside].

    Args:
        experts: the stacked experts.
        router: gives `Scores` of (tokens, experts).
        top_k: experts per token.
        select: see `select_experts`.
        weighting: see `expert_weights`.
        straight_through: see there.
        scale: multiplies the weights.
        capacity: None limits: dropless.
        losses: auxiliary losses to record.
        jitter: in training the input is multiplied by uniform noise in 1 - jitter .. 1 + jitter.
        jitter_in_evaluation: there too.
        output_dropout: of the experts' output alone, in training.
        beside: side experts or a HyperExpert, added to the output.
        beside_weighted: multiply what is beside by the sum of the weights.
        backend: `auto`, or a name of `BACKENDS`.

    Source: EMoE, arXiv:2310.10908; HyperMoE, arXiv:2402.12656.
    """

    def __init__(
        self,
        experts: Experts,
        router: nn.Module,
        *,
        top_k: int,
        select: Select = "top",
        weighting: Weighting = "ones",
        straight_through: bool = True,
        scale: float = 1.0,
        capacity: Capacity | None = None,
        losses: AuxiliaryLosses | None = None,
        jitter: float = 0.0,
        jitter_in_evaluation: bool = False,
        output_dropout: float = 0.0,
        beside: SideExperts | HyperExpert | None = None,
        beside_weighted: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.experts = experts
        self.router = router
        self.beside = beside
        self.top_k = top_k
        self.select: Select = select
        self.weighting: Weighting = weighting
        self.straight_through = straight_through
        self.scale = scale
        self.capacity = capacity or Capacity()
        self.losses = losses or AuxiliaryLosses()
        self.jitter = jitter
        self.jitter_in_evaluation = jitter_in_evaluation
        self.output_dropout = output_dropout
        self.beside_weighted = beside_weighted
        self.backend = backend
        self.for_inference = False  # see the function of this name
        self.attention_mask: Tensor | None = None  # handed over by the model's pre-hook, (B, L)
        self.records = Records()

    @property
    def routing(self) -> Routing | None:
        """What the last call did; None if the model's last forward pass has left the layer out."""
        return self.records.last

    def forward(self, x: Tensor) -> Tensor:
        """Send tokens through their experts.

        Args:
            x: hidden states, float (..., D).

        Returns:
            float (..., D).
        """
        infers = self.for_inference and not (self.training or torch.is_grad_enabled())
        if infers and (found := infer(self, x.reshape(-1, x.shape[-1]))) is not None:
            self.records.keep(Routing(found[1], self.token_mask(x)))
            return found[0].reshape(x.shape)
        if self.jitter and (self.training or self.jitter_in_evaluation):
            x = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
        x_TD = x.reshape(-1, x.shape[-1])
        scores: Scores = self.router(x_TD, self.experts)
        index_TK = select_experts(scores.noisy, self.top_k, self.select)
        weights_TK = expert_weights(
            scores.noisy, index_TK, self.weighting, straight_through=self.straight_through
        )
        mask_T = self.token_mask(x)
        losses = self.auxiliary_losses(scores, index_TK, weights_TK, mask_T)
        routing = None
        if torch.compiler.is_compiling():  # a traced forward pass leaves no record
            self.records.traced = True
        else:
            differentiable = torch.is_grad_enabled() or not self.training
            routing = Routing(index_TK.detach(), mask_T, losses, differentiable)
            self.records.keep(routing)

        if weights_TK is not None and self.scale != 1.0:
            weights_TK = weights_TK * self.scale
        kept_TK = self.kept(scores.noisy, index_TK, x.shape[:-1])
        if self.losses.stack is not None and routing is not None:
            first_T = index_TK[:, 0] if kept_TK is None else index_TK[:, 0] * kept_TK[:, 0]
            routing.joint = (scores.clean.view(*x.shape[:-1], -1), first_T.view(x.shape[:-1]))
        if not torch.is_autocast_enabled(x.device.type):
            x_TD = x_TD.to(self.experts.keys.dtype)  # wider where an FFN had two: `of_one_dtype`
        used_TK = weights_TK
        if kept_TK is not None:
            used_TK = kept_TK.to(x_TD.dtype) if weights_TK is None else weights_TK * kept_TK
        stack = self.experts.tensors()
        backend = self.backend
        if backend == "auto":
            without_gradient = backend_of(x_TD, index_TK, stack) if infers else None
            top_k = index_TK.shape[1]
            backend = without_gradient or choose_backend(len(x_TD), top_k, stack, infers=infers)
        output_TD = compute(x_TD, index_TK, used_TK, self.experts, backend)
        if kept_TK is not None and self.capacity.dropped == "input":
            lost_TK = (~kept_TK).to(x_TD.dtype)
            lost_T1 = (lost_TK if weights_TK is None else weights_TK * lost_TK).sum(1, True)
            output_TD = output_TD + (x_TD * lost_T1).to(output_TD.dtype)
        if self.output_dropout and self.training:
            output_TD = functional.dropout(output_TD, self.output_dropout)
        if self.beside is not None:
            beside_TD = self.beside(x_TD, index_TK, masked=backend == "masked")
            if self.beside_weighted and weights_TK is not None:
                beside_TD = beside_TD * weights_TK.sum(1, True)
            if routing is not None:
                routing.norms = output_norms(output_TD, beside_TD, mask_T)
            output_TD = output_TD + beside_TD.to(output_TD.dtype)
        return output_TD.reshape(x.shape)

    def auxiliary_losses(
        self, scores: Scores, index_TK: Tensor, weights_TK: Tensor | None, mask_T: Tensor | None
    ) -> dict[str, Tensor]:
        """Compute the losses that have a coefficient, padding left out."""
        wanted = self.losses.coefficients
        found: dict[str, Tensor] = {}
        if not wanted or self.losses.stack is not None:
            return found
        probs_TE = scores.noisy.softmax(-1)
        if "balance" in wanted:
            if self.losses.importance == "selected":
                importance_TE = combine_matrix(index_TK, weights_TK, self.experts.num_experts)
            else:
                importance_TE = scores.clean.softmax(-1)
            noise = (scores.clean, scores.noisy, scores.std)
            if self.losses.load == "published":
                load_TE = smooth_load(*noise, index_TK)
            elif self.losses.load == "hypermoe":
                load_TE = load_by_probabilities(*noise, index_TK.shape[1])
            else:
                load_TE = load_of_probabilities(*noise, index_TK.shape[1])
            found["balance"] = importance_and_load_loss(importance_TE, load_TE, mask_T)
        if "switch_balance" in wanted:
            found["switch_balance"] = switch_balance_loss(probs_TE, index_TK, mask_T)
        if "z" in wanted:
            found["z"] = z_loss(scores.clean, mask_T)
        return found

    def kept(self, scores_TE: Tensor, index_TK: Tensor, shape: torch.Size) -> Tensor | None:
        """Tell which choices find room, bool (T, K); None: all of them."""
        if self.capacity.factor is not None:
            return within_capacity(scores_TE.detach(), index_TK, self.capacity.factor)
        if self.capacity.per_sequence is not None:
            index_BLK = index_TK.reshape(-1, shape[-1], index_TK.shape[1])
            return within_sequence_capacity(
                index_BLK, self.experts.num_experts, self.capacity.per_sequence
            )
        return None

    def selected(self) -> int:
        """Count the experts that a token passes: top_k, or the rest for `not_top`."""
        num_experts = self.experts.num_experts
        return num_experts - self.top_k if self.select == "not_top" else self.top_k

    def token_mask(self, x: Tensor) -> Tensor | None:
        """Flatten the attention mask, if there is one of the input's shape, flat or not (OPT)."""
        mask = self.attention_mask
        if mask is None or x.shape[:-1] not in (mask.shape, (mask.numel(),)):
            return None
        return mask.to(x.device).reshape(-1).bool()

    def idle_parameters(self) -> int:
        """Count the parameters that one token does not use: those of unselected experts."""
        routed = [self.experts]
        if isinstance(self.beside, SideExperts) and self.beside.experts.num_experts > 1:
            routed.append(self.beside.experts)
        idle = 0
        for experts in routed:
            stacked = [p for p in experts.parameters() if p.shape[:1] == (experts.num_experts,)]
            own = sum(p.numel() for p in stacked if p is not experts.output_bias or p.ndim == 2)
            idle += own - own * self.selected() // experts.num_experts
        return idle

    def flops_per_token(self) -> int:
        """Count 2 per weight of the products of one token: selected experts, router, beside.

        Generating a HyperExpert is left out: it is shared by the tokens of a selection.
        """
        num_experts, size, d_model = self.experts.keys.shape
        matrices = 2 if self.experts.ups is None else 3
        total = matrices * size * d_model * self.selected()
        parameters = [p for p in self.router.parameters() if p.ndim == 2]
        total += sum(p.numel() for p in parameters) if parameters else num_experts * d_model
        if isinstance(self.beside, HyperExpert):
            total += 2 * self.beside.hypernet.width * d_model
        elif self.beside is not None:
            side = self.beside.experts
            passed = 1 if side.num_experts == 1 else self.selected()
            total += (
                sum(p.numel() for p in side.parameters() if p.ndim == 3)
                * passed
                // (side.num_experts)
            )
        return 2 * total

    def extra_repr(self) -> str:
        """Show the routing in `print(model)`."""
        return (
            f"top_k={self.top_k}, select={self.select}, weighting={self.weighting}, "
            f"backend={self.backend}"
        )


@torch.no_grad()
def output_norms(experts_TD: Tensor, beside_TD: Tensor, counted_T: Tensor | None) -> Tensor:
    """Measure how large the experts' output is, and that of what stands beside them.

    Args:
        experts_TD: weighted sum of the selected experts, float (T, D).
        beside_TD: what is added to it, float (T, D).
        counted_T: bool (T,), False for padding; None: all count.

    Returns:
        Sums over the counted tokens, float32 (3,): lengths of the experts' output, lengths of the
        other, 1 each.
    """
    lengths = [t.float().norm(dim=1) for t in (experts_TD, beside_TD)]
    rows_T3 = torch.stack([*lengths, torch.ones_like(lengths[0])], 1)
    return total(rows_T3, counted_T)


def compute(
    x_TD: Tensor, index_TK: Tensor, weights_TK: Tensor | None, experts: Experts, backend: str
) -> Tensor:
    """Compute the weighted sum of the selected experts, their output bias included.

    Args:
        x_TD: tokens, float (T, D).
        index_TK: selected experts, int64 (T, K).
        weights_TK: float (T, K), or None: 1 each.
        experts: the experts.
        backend: a name of `BACKENDS`; or, without a gradient, `one_token`.

    Returns:
        float (T, D).
    """
    call = one_token if backend == "one_token" else BACKENDS[backend]
    output_TD = call(x_TD, index_TK, weights_TK, experts.tensors())
    bias = experts.bias(index_TK, weights_TK)
    return output_TD if bias is None else output_TD + bias.to(output_TD.dtype)


def fast_backend(x_TD: Tensor, index_TK: Tensor, experts: Experts) -> str:
    """Choose the back end of experts beside others: `sorted` on a CPU, elsewhere as `auto`."""
    if x_TD.device.type == "cpu":
        return "sorted"
    return choose_backend(len(x_TD), index_TK.shape[1], experts.tensors())


def for_inference(model: M) -> M:
    """Put a converted model into evaluation mode, and let it compute fast without a gradient.

    The C++ kernel takes fp32 layers on a CPU, where `python -m moe_runner.kernels build` made it;
    else steps of one token, as of generation with a cache, read the selected experts only. Where
    all experts are selected the dense network is computed. Outputs are those of the other back
    ends up to the order of the sums; runs, whose numbers are stored, use this only if asked.
    Training goes on as before (`model.train()`). Between evaluations, weights may change by an
    optimizer, `load_state_dict` or `torch.no_grad()`, not through `.data`: see `forget_gates`.

    Args:
        model: converted; changed in place.

    Returns:
        The same model.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, MoEFeedForward):
            module.for_inference = True
        elif isinstance(module, AverageKeyRouter):
            module.keeps_gates = True
    return model


def auxiliary_loss(model: nn.Module) -> Tensor | None:
    """Add up the auxiliary losses of all MoE layers, times their coefficients: the one place.

    They are those of the model's last forward pass: of all calls of a layer that several blocks
    share (ALBERT), of none of a layer that was skipped. With activation checkpointing, do the
    backward pass of one forward pass before the next: what is recomputed reads the mask of the last
    one. Without gradients the losses are those of this process's tokens, else of all processes':
    evaluate under `torch.no_grad()`, so that processes do not wait for each other.

    Args:
        model: converted, after a forward pass.

    Returns:
        Scalar with a gradient, to be added to the task's loss; None if no layer has one.

    Raises:
        RuntimeError: if the losses have lost their gradient: activation checkpointing with
            `use_reentrant=True` runs the forward pass without one, and what it recomputes for the
            backward pass is connected to its outputs only. Or if they were not recorded: in what
            torch.compile has traced.
    """
    layers: list[Any] = [  # MoEFeedForward, and routers of the library
        layer
        for layer in model.modules()
        if isinstance(getattr(layer, "losses", None), AuxiliaryLosses)
    ]
    if any(layer.records.traced and layer.losses.coefficients for layer in layers):
        raise RuntimeError(
            "the auxiliary losses were not recorded: torch.compile has traced the MoE layers; "
            "leave them out before that: layer.forward = torch.compiler.disable(layer.forward)"
        )
    routings: list[tuple[AuxiliaryLosses, Routing]] = [
        (layer.losses, routing)
        for layer in layers
        for routing in layer.records.of_all_calls()
        if routing.losses or routing.joint
    ]
    if torch.is_grad_enabled() and not all(routing.differentiable for _, routing in routings):
        raise RuntimeError(
            "the auxiliary losses have no gradient: activation checkpointing with "
            "use_reentrant=True computes them without; use use_reentrant=False"
        )
    found = [(own.coefficients, routing.losses) for own, routing in routings]
    stacks: dict[str, list[tuple[AuxiliaryLosses, tuple[Tensor, Tensor]]]] = {}
    for own, routing in routings:
        if routing.joint is not None and own.stack is not None:
            stacks.setdefault(own.stack, []).append((own, routing.joint))
    for stack in stacks.values():
        joint = [each for _, each in stack]
        losses = stack_losses([scores for scores, _ in joint], [chosen for _, chosen in joint])
        found.append((stack[0][0].coefficients, losses))
    terms = [coefficients[name] * loss for coefficients, own in found for name, loss in own.items()]
    return torch.stack(terms).sum() if terms else None
