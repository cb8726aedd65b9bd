"""Shared by all tests: one torch thread, shapes checked at run time, the public data where it is."""

import os
from pathlib import Path

import torch
from jaxtyping import install_import_hook

# Before anything of ours is imported: every annotated shape is checked in every test.
install_import_hook("clinimeta", "shape_checks.check")

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

torch.set_num_threads(1)
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

settings.register_profile(
    "ours", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ours")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of public data sets: CLINIMETA_DATA, else ../shared/data beside the checkout."""
    named = os.environ.get("CLINIMETA_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the public data sets are not at {folder}; set CLINIMETA_DATA to run this")
    return folder


@pytest.fixture(autouse=True)
def _no_ambient_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that needs data says so; none finds it by accident."""
    monkeypatch.delenv("CLINIMETA_DATA", raising=False)
