"""A network that writes the last layer of another (Ha, Dai, Le; ICLR 2017), for each support set its own."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor
from torch.func import grad

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.algorithms.base import MetaLoss, query_loss
from clinimeta.common.algorithms.deep_set import encode_support, group_means, init_deep_set
from clinimeta.common.algorithms.perceptron import init_perceptron, perceptron
from clinimeta.common.models.base import Model, init_linear
from clinimeta.common.params import add, part, prefixed
from clinimeta.common.tasks.episode import Episode, Examples
from clinimeta.common.tasks.objective import Objective, target_width
from clinimeta.common.typing import Inputs, Params


@ALGORITHMS.register("hypernetwork")
@dataclass(frozen=True, slots=True)
class Hypernetwork:
    """Learn a generator that reads a support set and writes the last layer of the hospital's model at once.

    The rows, embedded by the model, are encoded as a set; from each class's code (a number has one) and their
    mean the generator f(T) makes that class's column of the head, and from the mean a scale and shift of the
    embedding (FiLM; Perez et al., AAAI 2018), all as offsets to learned ones. A class's column has the mean
    features of its rows added (Qi, Brown, Lowe, CVPR 2018), so that likeness tells apart what the generator
    never saw. With `tune_steps` what was generated is tuned by gradient descent on the support set, through
    which the generator is trained, too.
    """

    model: Model
    objective: Objective
    embedding: Annotated[int, Ge(1)] = 32
    hidden: Annotated[int, Ge(1)] = 64
    tune_steps: Annotated[int, Ge(0)] = 0
    tune_rate: Annotated[float, Gt(0)] = 0.1
    exact: ClassVar[bool] = True

    @property
    def embedder(self) -> Model:
        """The model, its output widened to the embedding."""
        return dataclasses.replace(self.model, outputs=self.embedding)  # type: ignore[type-var]

    def init(self, rng: torch.Generator) -> Params:
        """The embedder, the encoder, the two generators (`head`, `film`) and what they add to (`base`)."""
        weight, bias = init_linear(self.embedding, target_width(self.objective), rng)
        film = {"scale": torch.ones(self.embedding), "shift": torch.zeros(self.embedding)}
        return {
            **prefixed(self.embedder.init(rng), "embedder"),
            **init_deep_set("encoder", self.objective, self.embedding, self.hidden, rng),
            **init_perceptron("head", (2 * self.hidden, self.hidden, self.embedding + 1), rng),
            **init_perceptron("film", (self.hidden, self.hidden, 2 * self.embedding), rng),
            **prefixed({"weight": weight, "bias": bias, **film}, "base"),
        }

    def adapt(self, params: Params, support: Examples) -> Params:
        """The hospital's `weight` and `bias` of the head, `scale` and `shift`: generated, then tuned."""
        embedded = self._embed(params, support.inputs)
        made = self.generate(params, embedded, support)

        def loss(made: Params) -> Tensor:
            return self.objective.loss(self._outputs(made, embedded), support)

        for _ in range(self.tune_steps):
            made = add(made, grad(loss)(made), -self.tune_rate)
        return made

    def generate(
        self, params: Params, embedded: Float[Tensor, "rows embedding"], support: Examples
    ) -> Params:
        """F(T): `weight` `[embedding, groups]`, `bias` `[groups]`, `scale` and `shift` `[embedding]`."""
        codes = encode_support(params, "encoder", self.objective, embedded, support)
        task = codes.mean(dim=0)
        columns = perceptron(params, "head", torch.cat([codes, task.expand_as(codes)], dim=-1))
        scale, shift = perceptron(params, "film", task).chunk(2)
        offsets = {"weight": columns[:, 1:].T, "bias": columns[:, 0], "scale": scale, "shift": shift}
        made = add(part(params, "base"), offsets)
        if self.objective.classes:
            means = group_means(self.objective, self._features(made, embedded), support)
            made = {**made, "weight": made["weight"] + means.T}
        return made

    def predict(self, params: Params, adapted: Params, inputs: Inputs) -> Float[Tensor, "rows outputs"]:
        """The embedding, scaled and shifted, under the hospital's head."""
        return self._outputs(adapted, self._embed(params, inputs))

    def meta_loss(self, params: Params, episode: Episode) -> MetaLoss:
        """The query loss of what was generated and tuned."""
        return query_loss(self, params, episode)

    def _embed(self, params: Params, inputs: Inputs) -> Float[Tensor, "rows embedding"]:
        return self.embedder.apply(part(params, "embedder"), inputs)

    def _outputs(
        self, made: Params, embedded: Float[Tensor, "rows embedding"]
    ) -> Float[Tensor, "rows outputs"]:
        scores = self._features(made, embedded) @ made["weight"] + made["bias"]
        return self.objective.from_class_scores(scores) if self.objective.classes else scores

    def _features(
        self, made: Params, embedded: Float[Tensor, "rows embedding"]
    ) -> Float[Tensor, "rows embedding"]:
        return torch.relu(made["scale"] * embedded + made["shift"])
