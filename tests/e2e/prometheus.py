"""A Prometheus of our own that scrapes exporters under test."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from tests import servers
from tests.conftest import StartProcess

RULES = Path(__file__).parents[2] / "grafana" / "prometheus" / "rules.yaml"


def get(port: int, path: str) -> tuple[int, str]:
    """Status and body; 0 while nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=15) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


class Prometheus:
    """A server that scrapes *targets* twice a second, and evaluates the rules as often."""

    def __init__(self, start_process: StartProcess, folder: Path, *targets: int) -> None:
        binary = shutil.which("prometheus")
        if binary is None:
            servers.missing("Prometheus", "it is not installed (Debian: prometheus)")
        self.port = servers.free_port()
        jobs = [{"job_name": "chaperone", "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in targets]}]}]
        config = folder / "prometheus.yml"
        every = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
        config.write_text(json.dumps({"global": every, "scrape_configs": jobs, "rule_files": [str(RULES)]}))
        start_process(
            str(binary),
            *(f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address=127.0.0.1:{self.port}"),
        )

    def ask(self, path: str, **parameters: Any) -> Any:
        """The data of an answer of its API; what it has against the question is a failure."""
        status, body = get(self.port, f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        found = json.loads(body)
        assert (status, found["status"], found.get("warnings")) == (200, "success", None), (parameters, body)
        return found["data"]

    def query(self, text: str) -> list[dict[str, Any]]:
        """The result of a query; empty while there is none."""
        status, body = get(self.port, f"/api/v1/query?{urllib.parse.urlencode({'query': text})}")
        found: list[dict[str, Any]] = json.loads(body)["data"]["result"] if status == 200 else []
        return found

    def value(self, text: str) -> float | None:
        """The only value of a query; None where there is none."""
        found = self.query(text)
        return float(found[0]["value"][1]) if len(found) == 1 else None

    def by(self, label: str, name: str) -> Counter[str]:
        """A counter or gauge by a label; queues, actors and targets added up, and what is 0 left out."""
        found = self.query(f"sum by ({label}) ({name}) > 0")
        return Counter({each["metric"].get(label, ""): round(float(each["value"][1])) for each in found})

    def by_outcome(self, name: str) -> Counter[str]:
        """A counter, queues, actors and targets added up."""
        return self.by("outcome", name)
