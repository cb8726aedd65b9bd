"""Conditional neural processes (Garnelo et al.; ICML 2018)."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own habit)
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.algorithms.base import MetaLoss
from clinimeta.common.algorithms.deep_set import encode_support, init_deep_set
from clinimeta.common.algorithms.perceptron import init_perceptron, perceptron
from clinimeta.common.models.base import Model
from clinimeta.common.params import part, prefixed
from clinimeta.common.tasks.episode import Episode, Examples
from clinimeta.common.tasks.objective import Objective, target_width
from clinimeta.common.typing import Inputs, Params


@ALGORITHMS.register("neural_process")
@dataclass(frozen=True, slots=True)
class NeuralProcess:
    """Learn to predict from a support set at once, and to say how sure the prediction is.

    Equations 1 to 3 of the paper: r_i = h(x_i, y_i), r their mean, phi = g(x, r); h and g are perceptrons, x
    is embedded by the model. A number's phi is the mean and the standard deviation of a normal
    distribution, a class's the distribution over classes, for which r holds one mean a class (its section
    4.3). Where it differs: the loss is that of the query set alone, not of the support set again.

    `least_spread` bounds the standard deviation from below, in units of the target.
    """

    model: Model
    objective: Objective
    embedding: Annotated[int, Ge(1)] = 32
    hidden: Annotated[int, Ge(1)] = 64
    least_spread: Annotated[float, Gt(0)] = 0.1
    exact: ClassVar[bool] = True

    @property
    def embedder(self) -> Model:
        """The model, its output widened to the embedding."""
        return dataclasses.replace(self.model, outputs=self.embedding)  # type: ignore[type-var]

    def init(self, rng: torch.Generator) -> Params:
        """The weights of the embedder, of h (`encoder`) and of g (`decoder`)."""
        code = self.hidden * target_width(self.objective)
        outputs = self.objective.outputs if self.objective.classes else 2
        return {
            **prefixed(self.embedder.init(rng), "embedder"),
            **init_deep_set("encoder", self.objective, self.embedding, self.hidden, rng),
            **init_perceptron("decoder", (self.embedding + code, self.hidden, self.hidden, outputs), rng),
        }

    def adapt(self, params: Params, support: Examples) -> Float[Tensor, " code"]:
        """The representation r of the support set (eq. 1 and 2); 0 of an empty one."""
        embedded = self.embedder.apply(part(params, "embedder"), support.inputs)
        return encode_support(params, "encoder", self.objective, embedded, support).flatten()

    def predict(
        self, params: Params, adapted: Float[Tensor, " code"], inputs: Inputs
    ) -> Float[Tensor, "rows outputs"]:
        """The predictive distribution's logits, or its mean."""
        return self._decode(params, adapted, inputs)[:, : self.objective.outputs]

    def spread(
        self, params: Params, adapted: Float[Tensor, " code"], inputs: Inputs
    ) -> Float[Tensor, " rows"]:
        """The predictive standard deviation, in units of the target; numbers only."""
        return self._deviation(self._decode(params, adapted, inputs))

    def meta_loss(self, params: Params, episode: Episode) -> MetaLoss:
        """The query rows' mean negative log likelihood (eq. 4 on the query set), in nats."""
        query = episode.query
        phi = self._decode(params, self.adapt(params, episode.support), query.inputs)
        outputs = phi[:, : self.objective.outputs]
        if self.objective.classes:
            return MetaLoss(self.objective.loss(outputs, query), outputs)
        deviation = self._deviation(phi)
        losses = (
            ((query.targets - outputs[:, 0]) / deviation).square() / 2
            + deviation.log()
            + math.log(2 * math.pi) / 2
        )
        return MetaLoss((losses * query.weights).sum() / query.weights.sum().clamp(min=1), outputs)

    def _decode(
        self, params: Params, code: Float[Tensor, " code"], inputs: Inputs
    ) -> Float[Tensor, "rows phi"]:
        """Phi = g(x, r) (eq. 3)."""
        embedded = self.embedder.apply(part(params, "embedder"), inputs)
        each = code.expand(len(embedded), -1)
        return perceptron(params, "decoder", torch.cat([embedded, each], dim=-1))

    def _deviation(self, phi: Float[Tensor, "rows 2"]) -> Float[Tensor, " rows"]:
        return self.least_spread + F.softplus(phi[:, 1])
