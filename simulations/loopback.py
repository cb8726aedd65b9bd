"""Flower's Grid in one process: the same ServerApp and ClientApp, real wire encoding, no network.

With `encode` every message goes through Flower's own object encoding, byte for byte what travels
between hosts; without it messages are handed over as they are, for speed, with equal results. Time is
virtual: a slow site makes the clock, not the person, wait.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from clinimeta.client.app import client_app
from clinimeta.client.site import Site
from clinimeta.common.errors import RecordError
from clinimeta.common.flower_records import from_flower, to_flower
from clinimeta.common.records import Order
from clinimeta.common.rng import derive_seed
from clinimeta.common.study import Faults
from clinimeta.server.app import Job, Outcome, server_app
from clinimeta.simulations.consortium import found, noise_seed
from clinimeta.simulations.failures import Fault, FaultPlan, corrupt

WireTap = Callable[[str, bytes], None]
"""Sees every byte on the simulated wire: direction ("down" or "up") and an encoded object."""

_RUN_ID = 1


@dataclass(slots=True)
class VirtualClock:
    """A clock that only sleeping moves."""

    seconds: float = 0.0

    def now(self) -> float:
        """Seconds since the start."""
        return self.seconds

    def sleep(self, seconds: float) -> None:
        """Move on."""
        self.seconds += seconds


@dataclass(frozen=True, slots=True)
class Due:
    """A reply and when it arrives; None never does."""

    reply: Message | None
    at: float


@dataclass(slots=True)
class _Node:
    site: str
    context: Context
    orders: int = 0


@dataclass(slots=True)
class LoopbackGrid(Grid):
    """A Grid whose nodes are ClientApp calls in this process."""

    client: ClientApp
    sites: Mapping[str, Mapping[str, str | int]]
    clock: VirtualClock
    encode: bool = True
    faults: FaultPlan | None = None
    slow_s: float = 1e6
    tap: WireTap | None = None
    _nodes: dict[int, _Node] = field(init=False)
    _run: Run = field(init=False)
    _due: dict[str, Due] = field(init=False, default_factory=dict)
    _sent: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """Give every site a node, and this process the identity that Flower's messages carry."""
        self._run = Run.create_empty(_RUN_ID)
        self._run.primary_task_id = 1
        TaskIdentity.task_id, TaskIdentity.run_id = 1, _RUN_ID
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        self._nodes = {}
        for site, config in self.sites.items():
            node = derive_seed("node", site)
            context = Context(_RUN_ID, node, dict(config), RecordDict(), {})
            self._nodes[node] = _Node(site, context)

    def set_run(self, run: Run) -> None:
        """Flower's interface; the run changes nothing here."""
        self._run = run

    @property
    def run(self) -> Run:
        """A placeholder: there is one run in this process."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Flower's interface."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All sites are online."""
        return list(self._nodes)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """All sites are online."""
        return [NodeInfo(node_id=node) for node in self._nodes]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let every addressed site answer, at once or late."""
        ids = []
        for message in messages:
            self._sent += 1
            message_id = f"message-{self._sent}"
            message.metadata.__dict__["_message_id"] = message_id
            self._due[message_id] = self._answer(message)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that have arrived by now."""
        arrived = []
        for message_id in message_ids:
            due = self._due.get(message_id)
            if due is not None and due.reply is not None and due.at <= self.clock.now():
                arrived.append(due.reply)
                del self._due[message_id]
        return arrived

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Flower's interface: push, wait out the timeout, pull."""
        ids = list(self.push_messages(messages))
        self.clock.sleep(timeout or 0.0)
        return self.pull_messages(ids)

    def _answer(self, message: Message) -> Due:
        node = self._nodes[message.metadata.dst_node_id]
        node.orders += 1
        fault = self.faults.fault(node.site, node.orders) if self.faults else None
        if fault is Fault.SILENT:
            return Due(None, self.clock.now())
        if fault is Fault.ERROR:
            error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "injected")
            return Due(Message(error, reply_to=message), self.clock.now())
        reply = self.client(self._wire(message, "down"), node.context)
        if fault is Fault.CORRUPT:
            record = from_flower(reply.content)
            assert not isinstance(record, Order), "a site's message holds an answer"
            reply.content = to_flower(corrupt(record, node.site, node.orders))
        reply = self._wire(reply, "up")
        return Due(reply, self.clock.now() + (self.slow_s if fault is Fault.SLOW else 0.0))

    def _wire(self, message: Message, direction: str) -> Message:
        """Take a message apart into the bytes that Flower sends, and put it together again."""
        if not message.metadata.message_id:
            message.metadata.__dict__["_message_id"] = message.object_id
        if not self.encode:
            return message
        contents = {key: part.deflate() for key, part in get_all_nested_objects(message).items()}
        if self.tap is not None:
            for data in contents.values():
                self.tap(direction, data)
        arrived = inflate_object_from_contents(message.object_id, contents)
        if not isinstance(arrived, Message):
            raise RecordError("a message came out of the wire as something else")
        arrived.metadata.__dict__["_message_id"] = message.metadata.message_id
        return arrived


def run_loopback(server: ServerApp, grid: LoopbackGrid) -> None:
    """Run a ServerApp to its end over a loopback grid."""
    server(grid, Context(_RUN_ID, SUPERLINK_NODE_ID, {}, RecordDict(), {}))


@dataclass(frozen=True, slots=True)
class LoopbackEngine:
    """Run a training's two apps in this process, one site after the other."""

    encode: bool = True
    faults: Faults = field(default_factory=Faults)
    tap: WireTap | None = None

    def __call__(self, job: Job, outcome: Outcome, sites: Mapping[str, Site]) -> None:
        """Do `job` over these hospitals."""
        clock = VirtualClock()
        job = replace(job, noise_seed=noise_seed(job.plan))
        if job.plan.protection.answers == "masked":
            consortium = found(sites, job.plan)
            job, sites = replace(job, roster=consortium.roster), consortium.sites
        grid = LoopbackGrid(
            client_app(lambda context: sites[str(context.node_config["site"])]),
            {site: {"site": site} for site in sites},
            clock,
            encode=self.encode,
            faults=FaultPlan(self.faults, job.plan.seed),
            tap=self.tap,
        )
        run_loopback(server_app(job, outcome, clock=clock), grid)
