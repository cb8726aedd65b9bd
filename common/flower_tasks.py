"""Claim tasks of Flower's Runtime API and do them in this process; the bundle that comes along stays closed.

Flower would start a new process for each task, unpack the app bundle and run the code in it. We run
what is installed here: a bundle is some bytes whose digest is looked at.
"""

import hashlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import structlog
from flwr.app import Context
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, context_to_proto, fab_from_proto, run_from_proto
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest, PushTaskOutputRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker, make_simple_http_retry_invoker
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

log = structlog.get_logger()

CLIENT, SERVER = TaskType.CLIENT_APP, TaskType.SERVER_APP


@dataclass(frozen=True, slots=True)
class Desk:
    """Where tasks are handed out: a Runtime API on loopback, and the secret that it is shared with."""

    address: str
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Task:
    """A claimed task: its run, what Flower keeps of it, and the digest of the bundle that came with it."""

    client: RuntimeHttpClient
    token: str = field(repr=False)
    run: Run
    context: Context
    bundle: str


def tasks(
    desk: Desk, kind: str, *, poll_s: float, stopping: threading.Event, beat: Callable[[bool], None]
) -> Iterator[str | None]:
    """Tokens of tasks of one kind, as they come, until `stopping` is set; None where there was nothing new.

    `beat` hears at each look whether the link answered.
    """
    interceptors: list[Any] = [
        RuntimeVersionHttpInterceptor(component_name="clinimeta"),
        SuperExecAuthHttpInterceptor(
            master_secret=desk.secret, protected_methods=["/flwr.proto.Runtime/AcquireTask"]
        ),
    ]
    with _client(desk, interceptors) as client:
        while not stopping.is_set():
            try:
                found = client.AcquireTask(AcquireTaskRequest(supported_task_types=[kind]))
            except httpx.HTTPError as error:
                beat(False)
                log.debug("no tasks: the link does not answer", error=type(error).__name__)
                stopping.wait(1.0)
                yield None
                continue
            beat(True)
            if found.HasField("task") and found.token:
                yield found.token
            else:
                stopping.wait(poll_s)
                yield None


@contextmanager
def taken(desk: Desk, token: str) -> Iterator[Task]:
    """A task while it is being done: heartbeats are sent, and how it ended is told.

    Flower's heartbeat raises SIGINT, so KeyboardInterrupt, where the run was stopped in the meantime.
    """
    retries = make_simple_http_retry_invoker()
    interceptors: list[Any] = [
        RuntimeVersionHttpInterceptor(component_name="clinimeta"),
        RuntimeTokenHttpInterceptor(token),
    ]
    context: Context | None = None
    how, details = SubStatus.FAILED, "not finished"
    with _client(desk, interceptors, retries) as client:
        sender = HeartbeatSender(make_task_heartbeat_fn_http(client))
        sender.start()
        try:
            found = client.PullTaskInput(PullTaskInputRequest())
            context = context_from_proto(found.context)
            run, fab = run_from_proto(found.run), fab_from_proto(found.fab)
            TaskIdentity.task_id, TaskIdentity.run_id = found.task_id, run.run_id
            TaskIdentity.node_id = context.node_id
            yield Task(client, token, run, context, hashlib.sha256(fab.content).hexdigest())
            how, details = SubStatus.COMPLETED, ""
        except BaseException as error:
            details = type(error).__name__  # its text may hold anything
            raise
        finally:
            retries.max_tries = 1
            if sender.is_running:
                sender.stop()
            output = PushTaskOutputRequest(
                context=context_to_proto(context) if context else None, sub_status=how, details=details
            )
            try:
                client.PushTaskOutput(output)
            except httpx.HTTPError as error:
                log.warning("how a task ended could not be told", error=type(error).__name__)


def stop_on_sigterm(stopping: threading.Event) -> None:
    """Let SIGTERM set the event, and end what is being waited for."""

    def stop(_number: int, _frame: object) -> None:
        stopping.set()
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)


@contextmanager
def _client(
    desk: Desk, interceptors: Sequence[Any], retries: RetryInvoker | None = None
) -> Iterator[RuntimeHttpClient]:
    client = RuntimeHttpClient.from_server_address(
        desk.address, True, None, interceptors=interceptors, retry_invoker=retries
    )
    try:
        yield client
    finally:
        client.close()
