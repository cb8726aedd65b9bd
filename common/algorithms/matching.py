"""Matching networks (Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra; NeurIPS 2016)."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.algorithms.base import MetaLoss, query_loss
from clinimeta.common.algorithms.prototypes import cosines, init_log_scale, init_prior, squared_distances
from clinimeta.common.models.base import Model
from clinimeta.common.params import part, prefixed
from clinimeta.common.tasks.episode import Episode, Examples
from clinimeta.common.tasks.objective import Objective, encode_targets, target_width
from clinimeta.common.typing import Inputs, Params


class Memory(NamedTuple):
    """What is attended to: the support rows, then the prior's, with their targets and how much they count."""

    embedded: Float[Tensor, "memory embedding"]
    targets: Float[Tensor, "memory columns"]
    weights: Float[Tensor, " memory"]


@ALGORITHMS.register("matching")
@dataclass(frozen=True, slots=True)
class Matching:
    """Learn an embedding in which the answer for a patient is a mean over the most similar ones.

    Equation 1 of the paper, with the attention of its section 2.1.1: a softmax over the support rows'
    cosines. Where it differs: one embedding serves both sides (f = g), without the full context of its
    section 2.1.2; cosines are multiplied by a learned scale; and a number is predicted in the same way, by
    a Gaussian kernel of learned bandwidth in the embedding (Nadaraya, Watson; 1964), because there
    distances matter and not directions. With `prior_rows` > 0 each class has that many copies of a
    meta-learned row beside the support set (a number: one row with a learned target), so that a class
    without a patient keeps a probability.
    """

    model: Model
    objective: Objective
    embedding: Annotated[int, Ge(1)] = 32
    prior_rows: Annotated[float, Ge(0)] = 0.0
    exact: ClassVar[bool] = True

    @property
    def embedder(self) -> Model:
        """The model, its output widened to the embedding."""
        return dataclasses.replace(self.model, outputs=self.embedding)  # type: ignore[type-var]

    def init(self, rng: torch.Generator) -> Params:
        """The embedder, the scale (of a cosine, or 1 / bandwidth^2), and the prior's rows if any."""
        params = dict(prefixed(self.embedder.init(rng), "embedder"))
        params["log_scale"] = init_log_scale() if self.objective.classes else init_log_scale(1.0)
        if self.prior_rows:
            params["prior"] = init_prior(target_width(self.objective), self.embedding, rng)
            if not self.objective.classes:
                params["prior_target"] = torch.zeros(1)
        return params

    def adapt(self, params: Params, support: Examples) -> Memory:
        """The embedded support set, and the prior's rows after it."""
        embedded = self.embedder.apply(part(params, "embedder"), support.inputs)
        targets = encode_targets(self.objective, support.targets, embedded)
        if not self.prior_rows:
            return Memory(embedded, targets, support.weights)
        return Memory(
            torch.cat([embedded, params["prior"]]),
            torch.cat([targets, self._prior_targets(params, embedded)]),
            torch.cat([support.weights, support.weights.new_full((len(params["prior"]),), self.prior_rows)]),
        )

    def predict(self, params: Params, adapted: Memory, inputs: Inputs) -> Float[Tensor, "rows outputs"]:
        """The attention-weighted mean of the targets (eq. 1): log-probabilities, or the number."""
        log_attention = self.log_attention(params, adapted, inputs)
        if not self.objective.classes:
            return log_attention.exp() @ adapted.targets
        # The logarithm of the attention on each class, which does not underflow.
        scores = torch.logsumexp(log_attention[:, :, None] + adapted.targets.log(), dim=1)
        return self.objective.from_class_scores(scores)

    def log_attention(self, params: Params, memory: Memory, inputs: Inputs) -> Float[Tensor, "rows memory"]:
        """Log a(x, x_i); a row of weight w counts as w equal ones, so padding is at minus infinity."""
        embedded = self.embedder.apply(part(params, "embedder"), inputs)
        if self.objective.classes:
            similarity = cosines(embedded, memory.embedded)
        else:
            similarity = -squared_distances(embedded, memory.embedded) / 2
        logits = params["log_scale"].exp() * similarity + memory.weights.log()
        return torch.log_softmax(logits, dim=-1)

    def meta_loss(self, params: Params, episode: Episode) -> MetaLoss:
        """The query loss of the attention-weighted mean."""
        return query_loss(self, params, episode)

    def _prior_targets(self, params: Params, like: Tensor) -> Float[Tensor, "prior columns"]:
        if self.objective.classes:
            return torch.eye(self.objective.classes, dtype=like.dtype, device=like.device)
        return params["prior_target"][:, None]
