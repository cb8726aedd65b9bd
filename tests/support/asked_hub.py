"""A coordinator's real enrolment, asked by a hospital's real client, without a network between."""

from pathlib import Path
from typing import Any

import pytest
from enrolling import HOUR
from fastapi.testclient import TestClient

from clinimeta.client import enrol as enrolling_module
from clinimeta.server import enrolment
from clinimeta.server.daemon import make_home as make_hub
from clinimeta.server.database import Database
from clinimeta.server.enrolment_api import ca_digest, enrolment_app


class Hub:
    """A coordinator, asked without a network; `lose` answers are made and do not arrive."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = make_hub(
            folder, "hub", ["127.0.0.1"], host="127.0.0.1", port=1, control_port=2, health_port=3
        )
        self.database, self.lose = Database.open(self.home.database), 0
        http = TestClient(enrolment_app(self.home, lambda _: None), base_url="https://hub.test:9443")
        hub = self

        class Client:
            def __init__(self, **_options: Any) -> None: ...
            def __enter__(self) -> "Client":
                return self

            def __exit__(self, *_: object) -> None: ...

            def get(self, url: str) -> Any:
                return http.get(url)

            def post(self, url: str, json: Any) -> Any:
                answer = http.post(url, json=json)
                if hub.lose:
                    hub.lose -= 1
                    raise enrolling_module.httpx.ReadError("cut")
                return answer

        monkeypatch.setattr(enrolling_module.httpx, "Client", Client)

    def token(self, purpose: str) -> str:
        text = enrolment.invite(self.database, "ulm", HOUR, "operator", automatic=True, purpose=purpose)
        return f"{text}.{ca_digest(self.home.ca_certificate.read_bytes())}"
