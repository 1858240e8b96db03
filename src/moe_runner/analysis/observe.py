"""Watch the MoE layers of a model at work, by forward hooks, and keep plain arrays of it."""

# B examples, L positions, T tokens, D d_model, E experts, F neurons of one expert, K selected

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe_runner.analysis.numbers import cosines, from_gram
from moe_runner.analysis.records import Layer, Tokens
from moe_runner.conversion.counts import moe_layers
from moe_runner.conversion.record import conversion_of
from moe_runner.moe.clustering import random_clusters
from moe_runner.moe.experts import Experts
from moe_runner.moe.hypernet import HyperExpert
from moe_runner.moe.layer import MoEFeedForward
from moe_runner.moe.routing import Scores
from moe_runner.training.routing import same_noise

AT_ONCE = 2**23  # activations that are held at a time
MOST_LABELS = 50  # answers of different texts: more are no classes
MOST_SELECTIONS = 32  # of a HyperExpert, whose distances are shown
IGNORED = -100  # label of what is not predicted


@dataclass(frozen=True)
class Batch:
    """What is known of the examples that the layers of a stack now see.

    Args:
        size: B.
        first: number of the first example.
        label_B: int64 (B,); None: unknown.
        ids_BL: tokens, int64 (B, L); None: the input is no text.
        mask_BL: 0 for padding, (B, L), where the layers are not told of it; None: they are.
    """

    size: int
    first: int
    label_B: Tensor | None
    ids_BL: Tensor | None
    mask_BL: Tensor | None = None

    def of_tokens(self, counted_T: Tensor) -> dict[str, Tensor]:
        """List what is known of the tokens of a layer, int64 each.

        Args:
            counted_T: which ones to list, bool (B * L,), on the CPU.
        """
        counted_BL = counted_T.reshape(self.size, -1)
        number_B = torch.arange(self.first, self.first + self.size)
        found = {
            "position": counted_BL.long().cumsum(1) - 1,
            "example": number_B[:, None].expand(counted_BL.shape),
        }
        if self.ids_BL is not None and self.ids_BL.numel() == len(counted_T):
            found["identity"] = self.ids_BL.reshape(counted_BL.shape).cpu()
        if self.label_B is not None:
            found["label"] = self.label_B[:, None].expand(counted_BL.shape)
        return {name: value[counted_BL] for name, value in found.items()}


class Watched:
    """What is gathered of one layer while the model runs.

    Args:
        layer: the layer.
        name: of it.
        decodes: it reads the decoder's tokens, not the encoder's.
        measure: also compute every expert on every token, for outputs and activations.
    """

    def __init__(self, layer: MoEFeedForward, name: str, decodes: bool, measure: bool) -> None:
        self.layer, self.name, self.decodes, self.measure = layer, name, decodes, measure
        experts = layer.experts
        self.split = experts.expert_of_neuron is not None
        self.regrouped = regroup(layer) if self.split and measure else None
        self.chosen: list[Tensor] = []
        self.known: dict[str, list[Tensor]] = {}
        self.energy: list[Tensor] = []
        self.gram = torch.zeros(experts.num_experts, experts.num_experts, dtype=torch.float64)
        self.random_held = torch.zeros(2, dtype=torch.float64)  # sum of shares, tokens
        self.norms = torch.zeros(3, dtype=torch.float64)
        self.ties = 0

    def scored(self, router: nn.Module, args: Any, scores: Scores) -> None:
        """Keep what the selection goes by; a hook of the router."""
        self.scores_TE = scores.noisy.detach()

    def seen(self, batch: Batch, x: Tensor) -> None:
        """Keep what the layer has just done.

        Args:
            batch: what the examples are.
            x: its input, float (..., D).
        """
        layer, routing = self.layer, self.layer.routing
        assert routing is not None
        x_TD = x.detach().reshape(-1, x.shape[-1])
        counted_T = torch.ones(len(x_TD), dtype=torch.bool, device=x.device)
        if routing.mask is not None:
            counted_T = routing.mask
        elif batch.mask_BL is not None:
            counted_T = batch.mask_BL.reshape(-1).bool()
        num_experts = layer.experts.num_experts
        index_TK = routing.index[counted_T]
        chosen_TE = torch.zeros(len(index_TK), num_experts, dtype=torch.bool, device=x.device)
        chosen_TE.scatter_(1, index_TK, True)
        self.chosen.append(chosen_TE.cpu())
        if layer.selected() < num_experts and layer.select == "top":
            scores_TE = self.scores_TE[counted_T]
            within_T = scores_TE.masked_fill(~chosen_TE, torch.inf).amin(1)
            beyond_T = scores_TE.masked_fill(chosen_TE, -torch.inf).amax(1)
            self.ties += int((within_T == beyond_T).sum())
        for name, value in batch.of_tokens(counted_T.cpu()).items():
            self.known.setdefault(name, []).append(value)
        if routing.norms is not None:
            self.norms += routing.norms.double().cpu()
        if self.measure:
            self.compute_all(x_TD[counted_T].to(layer.experts.keys.dtype))

    def compute_all(self, x_TD: Tensor) -> None:
        """Compute every expert on every token, whichever were selected."""
        stack = self.layer.experts.tensors()
        neurons = stack.keys.shape[0] * max(stack.keys.shape[1:])
        for x in x_TD.split(max(1, AT_ONCE // neurons)):
            hidden_TEF = stack.activations(x)
            output_ETD = torch.einsum("tef,efd->etd", hidden_TEF, stack.values)
            bias = self.layer.experts.output_bias
            if bias is not None and bias.ndim == 2:
                output_ETD = output_ETD + bias[:, None]
            rows = output_ETD.flatten(1).double()
            self.gram += (rows @ rows.T).cpu()
            if self.split:
                self.energy.append(hidden_TEF.float().square().sum(-1).cpu())
            if self.regrouped is not None:
                energy_TE = self.regrouped.tensors().activations(x).double().square().sum(-1)
                scores: Scores = self.layer.router(x, self.regrouped)
                index = scores.noisy.topk(self.layer.selected(), dim=-1).indices
                total_T = energy_TE.sum(1)
                share_T = energy_TE.gather(1, index).sum(1) / total_T
                self.random_held += torch.stack(
                    [share_T[total_T > 0].sum(), (total_T > 0).sum()]
                ).cpu()

    def record(self) -> Layer:
        """Turn what was gathered into arrays."""
        experts = self.layer.experts
        known = {name: torch.cat(parts).numpy() for name, parts in self.known.items()}
        chosen_TE = torch.cat(self.chosen).numpy()
        norms, beside = None, ""
        if self.norms[2] > 0:
            norms = tuple((self.norms[:2] / self.norms[2]).tolist())
            made = isinstance(self.layer.beside, HyperExpert)
            beside = "HyperExpert" if made else "side experts"
        selections = tokens_S = embeddings = None
        if isinstance(self.layer.beside, HyperExpert):
            sets_SE, counts_S = np.unique(chosen_TE, axis=0, return_counts=True)
            order = np.argsort(-counts_S, kind="stable")[:MOST_SELECTIONS]
            selections, tokens_S = sets_SE[order], counts_S[order] / len(chosen_TE)
            device = experts.keys.device
            embedded = self.layer.beside.embed(torch.from_numpy(selections).to(device))
            embeddings = embedded.double().cpu().numpy()
        tied = self.ties / max(len(chosen_TE), 1)
        tokens, seen = self.random_held.tolist()[::-1]
        return Layer(
            name=self.name,
            tokens=Tokens(
                example=known["example"],
                position=known["position"],
                identity=known.get("identity"),
                label=known.get("label"),
            ),
            chosen=chosen_TE,
            tied=tied,
            keys=cosines(described_keys(experts).numpy()),
            outputs=from_gram(self.gram.numpy()),
            split=self.split,
            energy=torch.cat(self.energy).numpy() if self.energy else None,
            random_groups=seen / tokens if tokens else None,
            norms=norms,
            beside=beside,
            selections=selections,
            selection_tokens=tokens_S,
            embeddings=embeddings,
        )


def described_keys(experts: Experts) -> Tensor:
    """Describe each expert by its keys, for a comparison, float64 on the CPU (E, N).

    Groups of neurons by the mean of their keys, the direction that average-key gating goes by;
    copies of one network, whose neurons stand side by side, by all keys in a row.
    """
    keys_EFD = experts.keys.detach().double().cpu()
    return keys_EFD.flatten(1) if experts.expert_of_neuron is None else keys_EFD.mean(1)


def regroup(layer: MoEFeedForward) -> Experts | None:
    """Group the neurons of a layer at random, for the same router to select from.

    None where the router has weights: they were learned for the layer's own experts. None also
    where it does not select the best.
    """
    if list(layer.router.parameters()) or layer.select != "top":
        return None
    num_experts = layer.experts.num_experts
    keys_ND = layer.experts.keys.detach().flatten(0, 1).float().cpu().numpy()
    groups = torch.as_tensor(random_clusters(keys_ND, num_experts, seed=0))
    regrouped = Experts.split(layer.experts.dense(layer.top_k), groups)
    return regrouped.train(layer.training)


def layer_names(model: PreTrainedModel) -> list[tuple[str, bool]]:
    """Name the MoE layers of a model, in the order of `moe_layers`; tell which ones decode."""
    conversion = conversion_of(model)
    assert conversion is not None
    pairs = zip(conversion.sites, conversion.layers, strict=True)
    sites = {id(layer): site for site, layer in pairs}
    found = []
    for layer in moe_layers(model):
        site = sites[id(layer)]
        decodes = model.config.is_encoder_decoder and site.stack == "decoder"
        found.append((f"{site.stack} {site.layer}", bool(decodes)))
    return found


@torch.no_grad()
def observe(
    model: PreTrainedModel,
    batches: Iterable[dict[str, Tensor]],
    *,
    classes: bool = False,
    measure: bool = True,
) -> list[Layer]:
    """Run a model on some texts and see what its MoE layers do.

    Args:
        model: converted; its mode is restored.
        batches: keyword arguments of the model, on its device. An encoder-decoder without `labels`
            runs its encoder alone.
        classes: the labels are classes: of examples, or texts that answer by one.
        measure: compute every expert on every token; False: there are no activations, and the
            cosines of outputs are 0.

    Returns:
        One record per MoE layer that saw a token, in their order.
    """
    training = model.training
    model.eval()
    watched = [
        Watched(layer, name, decodes, measure)
        for layer, (name, decodes) in zip(moe_layers(model), layer_names(model), strict=True)
    ]
    answers: dict[tuple[int, ...], int] = {}
    try:
        with same_noise(model), watching(watched) as current:
            first = 0
            for batch in batches:
                labels = batch.get("labels")
                label_B = label_numbers(labels, answers) if classes else None
                size = len(next(iter(batch.values())))
                current["encoder"] = Batch(size, first, label_B, batch.get("input_ids"))
                first += size
                if not model.config.is_encoder_decoder:
                    model(**batch)
                elif labels is None:
                    model.get_encoder()(**batch)
                else:
                    current["decoder"] = decoded(model, batch, current["encoder"])
                    model(**batch)
    finally:
        model.train(training)
    if len(answers) > MOST_LABELS:
        for each in watched:
            each.known.pop("label", None)
    return [each.record() for each in watched if each.chosen]


def decoded(model: PreTrainedModel, batch: dict[str, Tensor], encoded: Batch) -> Batch:
    """Say what a decoder reads: the answers, or to classify the same text again; one place on.

    Args:
        model: an encoder-decoder.
        batch: with labels: tokens (B, L), or classes or scores (B,).
        encoded: what its encoder sees.
    """
    labels = batch["labels"]
    if labels.ndim == 2:
        ids_BL = model.prepare_decoder_input_ids_from_labels(labels=labels)
        return replace(encoded, ids_BL=ids_BL)
    ids_BL = batch["input_ids"].roll(1, 1)
    ids_BL[:, 0] = model.config.decoder_start_token_id
    return replace(encoded, ids_BL=ids_BL, mask_BL=batch.get("attention_mask"))


@contextmanager
def watching(watched: Iterable[Watched]) -> Iterator[dict[str, Batch]]:
    """Let layers tell what they do within the block.

    Yields:
        The current batch by stack, to be set before the model is called.
    """
    current: dict[str, Batch] = {}

    def after(each: Watched, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        each.seen(current["decoder" if each.decodes else "encoder"], args[0])

    handles = []
    for each in watched:
        handles.append(each.layer.router.register_forward_hook(each.scored))
        handles.append(each.layer.register_forward_hook(partial(after, each)))
    try:
        yield current
    finally:
        for handle in handles:
            handle.remove()


def label_numbers(labels: Tensor | None, answers: dict[tuple[int, ...], int]) -> Tensor | None:
    """Number the labels of a batch.

    Args:
        labels: classes, int (B,), or the tokens of answers, int (B, L).
        answers: number of each answer seen so far; new ones are added.

    Returns:
        int64 (B,) on the CPU; None if there is none, or it is a score.
    """
    if labels is None or labels.is_floating_point():
        return None
    if labels.ndim == 1:
        return labels.cpu().long()
    rows = [tuple(token for token in row if token != IGNORED) for row in labels.tolist()]
    return torch.tensor([answers.setdefault(row, len(answers)) for row in rows])
