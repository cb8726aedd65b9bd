"""What a hostile coordinator would send: a bundle with code of its own, orders that are none."""

import hashlib
import os
import time
from pathlib import Path

MARK = "from pathlib import Path; Path({marker!r}).write_text('it ran')\n"
APP = MARK + "from flwr.clientapp import ClientApp\nfrom flwr.serverapp import ServerApp\napp = ClientApp()\n"


def bundle(ours):
    """A bundle that names its own code, and brings a package that would shadow ours."""
    from flwr.cli.build import build_fab_from_files

    from clinimeta.server.bundle import PYPROJECT, README

    marker = os.environ["CLINIMETA_TEST_MARKER"]
    code = MARK.format(marker=marker).encode()
    text = PYPROJECT.format(version="9.9.9")
    text = text.replace('fab-include = ["README.md"]', 'fab-include = ["**/*.py", "README.md"]')
    text = text.replace("clinimeta.server.runner:app", "hostile_app:app")
    text = text.replace("clinimeta.client.runner:app", "hostile_app:app")
    files = {
        "pyproject.toml": text.encode(),
        "README.md": README.encode(),
        "hostile_app.py": code,
        "sitecustomize.py": code,
        "conftest.py": code,
        "clinimeta/__init__.py": code,
        "clinimeta/client/__init__.py": code,
        "clinimeta/client/runner.py": code,
        "clinimeta/client/app.py": code,
        "clinimeta/server/__init__.py": code,
        "clinimeta/server/runner.py": code,
        "torch/__init__.py": code,
    }
    content, _ = build_fab_from_files(files)
    assert content != ours()[0]
    Path(marker + ".bundle").write_bytes(content)
    return content, hashlib.sha256(content).hexdigest()


def conduct(ours, job, outcome, hospitals):
    """Orders that are none, to every node, whose answers are written down; then the experiment."""
    import numpy as np
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

    from clinimeta.common.flower_records import to_flower
    from clinimeta.common.records import IntroductionOrder

    good = to_flower(IntroductionOrder("nonce"))
    foreign = ConfigRecord({"kind": "Export", "version": 1})
    giant = Array("uint8", (2**25,), "clinimeta.safetensors", os.urandom(2**25))
    orders = [
        ("query.introduction", RecordDict({})),
        (
            "query.introduction",
            RecordDict({**good, "fields": foreign}),
        ),
        ("train.meta_gradient", RecordDict({**good, "tensors": ArrayRecord({"params": giant})})),
        ("train.meta_gradient", RecordDict({"arrays": ArrayRecord([np.zeros(3), np.array([np.nan])])})),
        ("train.everything", good),
        ("evaluate", good),
        ("query.introduction", good),
    ]
    said, grid = [], hospitals.link._grid
    nodes = list(grid.get_node_ids())
    for kind, content in orders:
        for node in nodes:  # one after the other: Flower may lose messages that share a part
            (waiting,) = grid.push_messages([Message(content, node, kind, ttl=60.0)])
            replies, end = [], time.monotonic() + 40
            while not replies and time.monotonic() < end:
                time.sleep(0.2)
                replies = list(grid.pull_messages([waiting]))
            said.append(f"{kind}: {_told(replies[0]) if replies else 'silence'}")
    Path(os.environ["CLINIMETA_TEST_MARKER"]).write_text("\n".join(said))
    return ours(job, outcome, hospitals)


def _told(reply):
    from clinimeta.common.flower_records import from_flower

    if reply.has_error():
        return f"error {reply.error.code} {reply.error.reason or ''}".strip()
    record = from_flower(reply.content)
    return f"{type(record).__name__} {getattr(record, 'code', '')}".strip()
