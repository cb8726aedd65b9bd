"""Flower's SecAgg+ to be measured beside ours: its own functions on its own messages, without a network.

The client is `secaggplus_mod`'s four stages, called one after the other as the mod calls them: key pairs,
shares of the seed and of the private key, decrypting the others' shares, rounding, masks, encoding,
and looking up shares. The coordinator is `SecAggPlusWorkflow`'s stages that collect the masked vectors and
take the masks off, over a grid that hands out prepared answers. Not in it, on either side: training, what
the mod and the workflow do to keep state between stages, encoding of messages, transport. Shares and
thresholds are set as ours: everybody shares with everybody, more than two thirds open.
"""

import importlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from numpy.typing import NDArray

CLIP, RANGE, MODULUS, WEIGHT = 8.0, 2**22, 2**32, 1000.0
"""Flower's defaults: vectors are cut to +-8 and rounded to 4,194,304 steps."""
TOLERANCE_SCALE = 1e-4 / (2 * CLIP / RANGE)
"""Makes of one step of its quantiser the largest difference that is allowed."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """As much of a Flower message as the workflow looks at."""

    content: Any
    metadata: Any

    def has_error(self) -> bool:
        """Never."""
        return False


@dataclass(frozen=True, slots=True)
class _Grid:
    """Hands out the same answers whatever is asked."""

    answers: Sequence[_Answer]

    def send_and_receive(self, messages: Iterable[object], timeout: float | None = None) -> list[_Answer]:
        """All of them."""
        del messages, timeout
        return list(self.answers)


def client(vector: NDArray[Any], n: int, dropped: int, threshold: int) -> Callable[[], object]:
    """One site's four stages among n; the others' shares are random bytes of the right length."""
    mod, common = peer_module("client.mod.secure_aggregation.secaggplus_mod"), peer_module("common")
    key, config = mod.Key, _config(mod.Key, n, threshold)
    others = {i: (mod.generate_key_pairs(), mod.generate_key_pairs()) for i in range(2, n + 1)}
    ready = mod.SecAggPlusState()
    ready.nid = 1
    mod._setup(ready, config)
    public = {str(i): tuple(mod.public_key_to_bytes(own[1]) for own in pair) for i, pair in others.items()}
    public |= {"1": (ready.pk1, ready.pk2)}
    lengths = [len(mod.create_shares(secret, 2, 3)[0]) for secret in (os.urandom(32), ready.sk1)]
    sealed = {
        i: mod.encrypt(
            mod.generate_shared_key(pair[1][0], mod.bytes_to_public_key(ready.pk2)),
            mod.share_keys_plaintext_concat(i, 1, *map(os.urandom, lengths)),
        )
        for i, pair in others.items()
    }
    given = {key.SOURCE_LIST: list(sealed), key.CIPHERTEXT_LIST: list(sealed.values())}
    active, dead = list(range(1, n + 1 - dropped)), list(range(n + 1 - dropped, n + 1))
    parameters = common.ndarrays_to_parameters([vector])

    def stages() -> object:
        mod._setup(mod.SecAggPlusState(), config)  # as costly with keys that nobody has sealed for
        state = copy(ready)
        mod._share_keys(state, public)
        mod._collect_masked_vectors(state, given, int(WEIGHT), parameters)
        return mod._unmask(state, {key.ACTIVE_NODE_ID_LIST: active, key.DEAD_NODE_ID_LIST: dead})

    return stages


def server(present: Sequence[NDArray[Any]], dropped: int, threshold: int) -> Callable[[], NDArray[Any]]:
    """The coordinator's two heavy stages; the call gives the mean of the vectors.

    Masks between two survivors cancel, and are left out of what is prepared; those that must come off are in.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)
    identity = peer_module("supercore.task_identity").TaskIdentity  # whose messages these would be
    identity.task_id, identity.run_id, identity.node_id = 1, 1, 1
    mod, common = peer_module("client.mod.secure_aggregation.secaggplus_mod"), peer_module("common")
    workflow = peer_module("server.workflow.secure_aggregation.secaggplus_workflow")
    key, n = mod.Key, len(present) + dropped
    active, dead = range(1, len(present) + 1), range(len(present) + 1, n + 1)
    pairs = {i: mod.generate_key_pairs() for i in range(1, n + 1)}
    public = {i: [mod.public_key_to_bytes(pair[1])] * 2 for i, pair in pairs.items()}
    seeds = {i: os.urandom(32) for i in active}
    hidden = seeds | {i: mod.private_key_to_bytes(pairs[i][0]) for i in dead}
    shares = {i: mod.create_shares(secret, threshold, n) for i, secret in hidden.items()}
    masked, revealed = list[_Answer](), list[_Answer]()
    for i, vector in zip(active, present, strict=True):
        rounded = mod.factor_combine(RANGE, mod.quantize([vector], CLIP, RANGE))
        shapes = [array.shape for array in rounded]
        total = mod.parameters_addition(rounded, mod.pseudo_rand_gen(seeds[i], MODULUS, shapes))
        for j in dead:
            pair_key = mod.generate_shared_key(pairs[i][0], pairs[j][1])
            mask = mod.pseudo_rand_gen(pair_key, MODULUS, shapes)
            total = (mod.parameters_addition if i > j else mod.parameters_subtraction)(total, mask)
        words = [common.ndarray_to_bytes(a) for a in mod.parameters_mod(total, MODULUS)]
        masked.append(_message(mod, common, i, {key.MASKED_PARAMETERS: words}))
        opened = {key.NODE_ID_LIST: list(hidden), key.SHARE_LIST: [s[i - 1] for s in shares.values()]}
        revealed.append(_message(mod, common, i, opened))
    found: list[NDArray[Any]] = []

    def keep(_: int, results: Any, __: object) -> tuple[None, dict[str, Any]]:
        found[:] = common.parameters_to_ndarrays(results[0][1].parameters)
        return None, {}

    settings = {workflow.MAIN_CONFIGS_RECORD: {workflow.WorkflowKey.CURRENT_ROUND: 1}}
    context: Any = SimpleNamespace(
        state=SimpleNamespace(config_records=settings), strategy=SimpleNamespace(aggregate_fit=keep)
    )
    flow = workflow.SecAggPlusWorkflow(1.0, 0.67, clipping_range=CLIP)

    def stages() -> NDArray[Any]:
        state = workflow.WorkflowState(
            nid_to_proxies=dict.fromkeys(active),
            nid_to_fitins={i: mod.RecordDict() for i in range(1, n + 1)},
            sampled_node_ids=set(range(1, n + 1)),
            active_node_ids=set(range(1, n + 1)),
            threshold=threshold,
            clipping_range=CLIP,
            quantization_range=RANGE,
            mod_range=MODULUS,
            max_weight=WEIGHT,
            nid_to_neighbours={i: set(range(1, n + 1)) for i in range(1, n + 1)},
            nid_to_publickeys=public,
            forward_srcs={i: [] for i in range(1, n + 1)},
            forward_ciphertexts={i: [] for i in range(1, n + 1)},
        )
        flow.collect_masked_vectors_stage(_Grid(masked), context, state)
        flow.unmask_stage(_Grid(revealed), context, state)
        return found[0]

    return stages


def peer_module(name: str) -> Any:
    """A part of flwr that has no promised interface; flwr is always installed, in a fixed version."""
    return importlib.import_module(f"flwr.{name}")


def _message(mod: Any, common: Any, node: int, values: Mapping[str, Any]) -> _Answer:
    status = common.Status(common.Code.OK, "")
    result = common.FitRes(status, common.Parameters([], ""), int(WEIGHT), {})
    content = mod.compat.fitres_to_recorddict(result, keep_input=True)
    content.config_records[mod.RECORD_KEY_CONFIGS] = mod.ConfigRecord(dict(values))
    return _Answer(content, SimpleNamespace(src_node_id=node))


def _config(key: Any, n: int, threshold: int) -> dict[str, Any]:
    return {
        key.SAMPLE_NUMBER: n,
        key.SHARE_NUMBER: n,
        key.THRESHOLD: threshold,
        key.CLIPPING_RANGE: CLIP,
        key.TARGET_RANGE: RANGE,
        key.MOD_RANGE: MODULUS,
        key.MAX_WEIGHT: WEIGHT,
    }
