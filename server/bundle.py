"""The app bundle that Flower wants for a run: it holds no code, only the names of the installed package."""

import functools
import hashlib
from importlib.metadata import version

PYPROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "clinimeta-run"
version = "{version}"
description = "Names the installed clinimeta; holds no code."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "clinimeta"
fab-include = ["README.md"]

[tool.flwr.app.components]
serverapp = "clinimeta.server.runner:app"
clientapp = "clinimeta.client.runner:app"

[tool.flwr.app.config]
experiment = ""
"""
README = "This bundle holds no code. Whoever runs it runs the clinimeta that is installed there.\n"


@functools.cache
def bundle() -> tuple[bytes, str]:
    """The bundle, and its SHA-256 in hexadecimal; the same for every run of a version."""
    from flwr.cli.build import build_fab_from_files

    text = PYPROJECT.format(version=version("clinimeta"))
    content, _ = build_fab_from_files({"pyproject.toml": text.encode(), "README.md": README.encode()})
    return content, hashlib.sha256(content).hexdigest()
