"""Rounds of FedAvg by simulators of federated learning that others made, each as its examples show it.

Every hospital takes five steps of gradient descent on all its rows; the mean weights are the next round's.
`lap` is called before the first round and after each. The result: the weights after the first round.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own habit)
from torch import Tensor, nn

from clinimeta.common.tasks.table import Table
from clinimeta.simulations.benchmarks.measuring import peer

STEPS, RATE = 5, 0.05
Lap = Callable[[], None]


def by_pfl(tables: Mapping[str, Table], module: nn.Module, rounds: int, lap: Lap) -> list[Tensor]:
    """pfl-research, its PyTorch model and simulated backend in this process."""
    averaging, base = _library("pfl.algorithm.federated_averaging"), _library("pfl.algorithm.base")
    simulate, sampling = _library("pfl.aggregate.simulate"), _library("pfl.data.sampling")
    data, users = _library("pfl.data.dataset"), _library("pfl.data.federated_dataset")
    pytorch, hyper = _library("pfl.model.pytorch"), _library("pfl.hyperparam")
    callbacks, metrics = _library("pfl.callback.base"), _library("pfl.metrics")
    operations = _library("pfl.internal.ops.pytorch_ops")
    # pfl takes any process that multiprocessing started for a loader of data; this one is a main process.
    operations.distributed = operations.PyTorchDistributedContext()
    reached: list[Tensor] = []

    class Watch(callbacks.TrainingProcessCallback):  # type: ignore[misc,name-defined]
        def after_central_iteration(self, *_: object, **__: object) -> tuple[bool, Any]:
            lap()
            reached.extend([] if reached else [p.detach().clone() for p in module.parameters()])
            return False, metrics.Metrics()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(module(x), y)

    def user(name: str) -> Any:
        rows = tables[name].rows
        return data.Dataset((rows.inputs["table"], rows.targets), user_id=name)

    module.loss = loss  # type: ignore[assignment]
    module.metrics = lambda *_, **__: {}  # type: ignore[assignment]
    model = pytorch.PyTorchModel(
        module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0), amp_dtype=None
    )
    names = list(tables)
    cohort = users.FederatedDataset(user, sampling.get_user_sampler("minimize_reuse", names))
    params = base.NNAlgorithmParams(rounds, rounds + 1, len(names), None)
    train = hyper.NNTrainHyperParams(local_batch_size=None, local_num_epochs=STEPS, local_learning_rate=RATE)
    lap()
    averaging.FederatedAveraging().run(
        params,
        simulate.SimulatedBackend(cohort, cohort),
        model,
        train,
        hyper.NNEvalHyperParams(local_batch_size=None),
        [Watch()],
        send_metrics_to_platform=False,
    )
    return reached


def by_flower(tables: Mapping[str, Table], module: nn.Module, rounds: int, lap: Lap) -> list[Tensor]:
    """Flower's own simulation: a virtual SuperNode a hospital, one Ray worker for each core."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "FLWR_TELEMETRY_ENABLED": "0"}
    flower, client, server = _library("flwr.app"), _library("flwr.clientapp"), _library("flwr.serverapp")
    serving, training = server.ServerApp(), client.ClientApp()
    names, reached = list(tables), list[Tensor]()
    training.train()(partial(_flower_client, tables, names, module))

    @serving.main()  # type: ignore[untyped-decorator]
    def main(grid: Any, context: Any) -> None:  # noqa: ARG001 (Flower's signature)
        weights = [p.detach().numpy() for p in module.parameters()]
        lap()
        for _ in range(rounds):
            content = flower.RecordDict({"weights": flower.ArrayRecord(weights)})
            orders = [
                flower.Message(content, dst_node_id=node, message_type="train")
                for node in grid.get_node_ids()
            ]
            replies = [r.content["weights"].to_numpy_ndarrays() for r in grid.send_and_receive(orders)]
            weights = [sum(parts) / len(replies) for parts in zip(*replies, strict=True)]
            lap()
            reached.extend([] if reached else [torch.from_numpy(w) for w in weights])

    _library("flwr.simulation").run_simulation(
        server_app=serving,
        client_app=training,
        num_supernodes=len(names),
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    return reached


def family_cpu_s() -> float:
    """CPU seconds of this process and of all processes that it started, and they."""
    usage, parents = dict[int, float](), dict[int, int]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended since
            continue
        number = int(path.parent.name)
        parents[number] = int(fields[1])
        usage[number] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    family = {os.getpid()}
    while grown := {n for n, parent in parents.items() if parent in family} - family:
        family |= grown
    return sum(usage.get(number, 0.0) for number in family)


def _flower_client(
    tables: Mapping[str, Table], names: list[str], module: nn.Module, message: Any, context: Any
) -> Any:
    flower = _library("flwr.app")
    torch.set_num_threads(1)
    rows = tables[names[int(context.node_config["partition-id"])]].rows
    with torch.no_grad():
        for parameter, array in zip(
            module.parameters(), message.content["weights"].to_numpy_ndarrays(), strict=True
        ):
            parameter.copy_(torch.from_numpy(array))
    sgd = torch.optim.SGD(module.parameters(), lr=RATE)
    for _ in range(STEPS):
        sgd.zero_grad()
        torch.autograd.backward(F.cross_entropy(module(rows.inputs["table"]), rows.targets))
        sgd.step()
    weights = flower.ArrayRecord([p.detach().numpy() for p in module.parameters()])
    return flower.Message(flower.RecordDict({"weights": weights}), reply_to=message)


def _library(name: str) -> Any:
    found = peer(name)
    assert found is not None, f"{name} is not installed"
    return found
