"""Per-task meta-gradients of any learner: the fast way by `vmap`, and the obvious way it must equal.

The gradient is taken inside the `vmap`, task by task, never around it: differentiating outside a
vmapped inner gradient gives silently wrong second-order terms through torch's fused normalisations.
Per-task gradients are also what clipping for privacy needs.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, vmap

from clinimeta.common.algorithms.base import MetaLearner
from clinimeta.common.params import map_params
from clinimeta.common.tasks.batch import unstack
from clinimeta.common.tasks.episode import Episode
from clinimeta.common.typing import Params


class TaskGradients(NamedTuple):
    """One meta-gradient a task: `gradients` has a leading axis of tasks on every tensor."""

    gradients: Params
    loss: Float[Tensor, " tasks"]
    outputs: Float[Tensor, "tasks query outputs"]

    def sum(self) -> Params:
        """The sum of the tasks' meta-gradients: what a site sends."""
        return map_params(lambda g: g.sum(dim=0), self.gradients)


def task_gradients(learner: MetaLearner[Any], params: Params, batch: Episode) -> TaskGradients:
    """All tasks of a stacked batch at once."""
    return _result(vmap(grad(with_outputs(learner), has_aux=True), in_dims=(None, 0))(params, batch))


def task_gradients_looped(learner: MetaLearner[Any], params: Params, batch: Episode) -> TaskGradients:
    """The same, one task after the other: the specification of `task_gradients`."""
    one = grad(with_outputs(learner), has_aux=True)
    results = [one(params, episode) for episode in unstack(batch)]
    gradients = map_params(lambda *g: torch.stack(g), *(g for g, _ in results))
    losses = torch.stack([loss for _, (loss, _) in results])
    return TaskGradients(gradients, losses, torch.stack([outputs for _, (_, outputs) in results]))


def adapt_and_predict(
    learner: MetaLearner[Any], params: Params, batch: Episode
) -> Float[Tensor, "tasks query outputs"]:
    """Query outputs after adaptation, all tasks of a stacked batch at once; nothing is learned."""

    def one(episode: Episode) -> Tensor:
        return learner.predict(params, learner.adapt(params, episode.support), episode.query.inputs)

    with torch.no_grad():
        result: Tensor = vmap(one)(batch)
    return result


def with_outputs(learner: MetaLearner[Any]) -> Any:
    """A task's meta-loss as `grad(..., has_aux=True)` takes it, the loss and the query outputs beside it."""

    def loss(params: Params, episode: Episode) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        meta = learner.meta_loss(params, episode)
        return meta.loss, (meta.loss, meta.outputs)

    return loss


def _result(computed: Any) -> TaskGradients:
    gradients, (loss, outputs) = computed
    return TaskGradients(gradients, loss, outputs)
