"""The guides keep their word: each of their Python snippets runs as it stands."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker

from dramatiq_chaperone import Chaperone, current_job, health
from dramatiq_chaperone.alerts import Finding, Message, channels, rules
from dramatiq_chaperone.alerts.channels import channels_of
from dramatiq_chaperone.alerts.messages import Block
from dramatiq_chaperone.breakers.registry import registry
from dramatiq_chaperone.errors import CommandRefused, JobCancelled
from dramatiq_chaperone.events import JobMemoryExceeded, JobMovedToDeadLetterQueue, finish_events, off, publish
from dramatiq_chaperone.models import DeadLetterJob, ResourceViolation
from dramatiq_chaperone.settings import BREAKER_OPTIONS, Settings
from dramatiq_chaperone.store import Store, open_store
from dramatiq_chaperone.store.models import current
from dramatiq_chaperone.supervision.policy import OPTIONS
from tests import servers
from tests.contracts.conftest import StoreSettings

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def snippets(guide: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / guide).read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("guide", ["querying.md", "stuck.md", "testing.md", "limits.md", "stopping.md", "dead-letters.md", "alerting.md"])
def test_links_lead_somewhere(guide: str) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (DOCS / guide).read_text())
    assert not [link for link in links if "://" not in link and not (DOCS / link).exists()]
    assert f"](docs/{guide})" in (ROOT / "README.md").read_text()


def test_querying(
    make_job: Callable[..., Any],
    make_worker: Callable[..., Any],
    make_heartbeat: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All of them one after the other, as in a notebook."""
    other = f"sqlite:///{tmp_path}/other.sqlite3"
    with contextlib.closing(open_store(StoreSettings(other, table_prefix=""), create=True)):
        pass
    job = make_job(status="failed", queue="mail", actor_name="send_mail")
    job.errors.model.create(job=job, run_id="r", attempt=1, created_at=job.created_at, outcome="failed", exception="OSError", message="no")
    beat = make_heartbeat(job)
    long_ago = datetime.now(UTC) - timedelta(hours=2)
    worker = make_worker(last_heartbeat_at=long_ago)
    DeadLetterJob.create(job_id="j", actor_name="send_mail", reason="age", created_at=long_ago, failed_at=long_ago)

    names: dict[str, Any] = {"message": SimpleNamespace(message_id=job.job_id)}
    found = snippets("querying.md")
    for snippet in found:
        exec(snippet.replace("sqlite:////srv/other/chaperone.sqlite3", other), names)  # as a reader runs them

    assert names["latest"] == beat
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [job.job_id, "OSError", worker.host, "1", "0"]
    assert DeadLetterJob.all().count() == 0
    with pytest.raises(CommandRefused):
        job.kill()


def test_dead_letters(make_job: Callable[..., Any], chaperone_store: Store) -> None:
    make_job(status="failed", queue="mail", actor_name="send_mail")
    at = datetime.now(UTC)
    DeadLetterJob.create(job_id="j", actor_name="charge", reason="age", created_at=at, failed_at=at)
    (snippet,) = snippets("dead-letters.md")
    exec(snippet, {})  # as a reader runs it
    assert [name for (name,) in chaperone_store.rows("SELECT command FROM {commands}")] == ["retry", "retry"]


def test_stuck() -> None:
    broker = StubBroker()
    broker.add_middleware(Chaperone())
    dramatiq.set_broker(broker)
    names: dict[str, Any] = {}
    for snippet in snippets("stuck.md"):
        exec(snippet, names)  # as a reader runs them
    assert names["sync"].options["missed_heartbeats"] == 4
    names["sync"](2)


def test_alerting(capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = snippets("alerting.md")
    names: dict[str, Any] = {}
    try:
        exec(snippet, names)  # as a reader runs it
        at = datetime.now(UTC)
        failed, other = (JobMovedToDeadLetterQueue(job_id="j1", actor_name=name, exception="E", failed_at=at) for name in ("invoice", "x"))
        found = [thing.type for event in (failed, other) for thing in rules.all_of(event) if isinstance(thing, Finding)]
        assert found == ["job_failed", "invoice_failed", "job_failed"]
        assert channels_of(Settings.load()).by_name["desk"].send(Message("A title", "error", (Block("line", "A line"),))).is_sent
    finally:
        rules._own.clear()
        channels._registered.clear()
    assert capsys.readouterr().out == "A title\nA line\n"


def test_testing(pytester: pytest.Pytester) -> None:
    app, *tests = snippets("testing.md")
    pytester.makepyfile(app=app, **{f"test_{number}": text for number, text in enumerate(tests)})
    expected = sum(text.count("\ndef test_") for text in tests)
    pytester.runpytest_subprocess("-W", "error").assert_outcomes(passed=expected)
    assert expected == 6


#: Guides whose snippets are run below, or by a test of their own (tests/e2e/test_web_frameworks.py).
TESTED = {
    "alerting.md",  # its configurations by tests/unit/alerts
    "dead-letters.md",
    "querying.md",
    "stuck.md",
    "testing.md",
    "web-frameworks.md",
    "getting-started.md",
    "supervision.md",
    "limits.md",
    "events.md",
    "settings.md",
    "metrics.md",
    "grafana.md",
    "stopping.md",
    "isolation.md",
    "crashes.md",
    "breakers.md",
}


def test_every_guide_with_snippets_is_tested() -> None:
    guides = {path.name for path in DOCS.glob("*.md") if re.search(r"^```\w", path.read_text(), flags=re.MULTILINE)}
    assert guides == TESTED


@pytest.fixture
def names(state_dir: Path) -> Iterator[dict[str, Any]]:
    """What a snippet may expect: Dramatiq with a broker of the test's own."""
    broker = StubBroker()
    dramatiq.set_broker(broker)
    yield {"dramatiq": dramatiq, "Chaperone": Chaperone}
    broker.close()
    dramatiq.set_broker(None)  # type: ignore[arg-type]  # as it was: none


def test_getting_started(names: dict[str, Any], supervise_inline: Callable[..., Any], tmp_path: Path) -> None:
    for snippet in snippets("getting-started.md"):
        exec(snippet, names)

    assert isinstance(names["broker"].middleware[-1], Chaperone)
    orders = tmp_path / "orders"
    orders.write_text("one\ntwo\n")
    job = supervise_inline(names["import_orders"], str(orders))
    assert (job.progress, job.phase) == (100, "import")


def test_supervision(names: dict[str, Any], supervise_inline: Callable[..., Any]) -> None:
    images = [SimpleNamespace(name=f"{number}.png") for number in range(4)]
    sent: list[int] = []
    names |= {
        "list_images": lambda folder: images,
        "resize_one": lambda image: None,
        "request": SimpleNamespace(user=SimpleNamespace(id=42)),
        "export": SimpleNamespace(send=sent.append),
        "order_id": 7,
    }
    for snippet in snippets("supervision.md"):
        exec(snippet, names)

    job = supervise_inline(names["resize"], "holidays")
    assert job.metadata == {"saved_mb": 12.5}
    assert job.phase == "resize"
    assert sent == [7]
    record = logging.LogRecord("mine", logging.INFO, "", 0, "hello", None, None)
    assert names["handler"].filter(record)
    assert "- - hello" in names["handler"].format(record)


def test_stopping(names: dict[str, Any], supervise_inline: Callable[..., Any]) -> None:
    removed: list[bool] = []

    def convert_one(page: int) -> None:
        if page == 2:
            current_job().is_cancelled = True  # type: ignore[union-attr]  # as the ladder does it

    names |= {"convert_one": convert_one, "remove_what_is_half_done": lambda: removed.append(True)}
    for snippet in snippets("stopping.md"):
        exec(snippet, names)
    with pytest.raises(JobCancelled):
        supervise_inline(names["convert"], [1, 2, 3])
    assert removed == [True]


def test_limits(
    names: dict[str, Any], make_job: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(health, "_checks", ())
    job = make_job(status="running", worker_id="w1")
    evidence = {"is_default": False, "history": [[0.0, 250_000_000]]}
    ResourceViolation.create(
        job=job, created_at=job.created_at, type="memory", limit=1e8, actual=2.5e8, attribution="exact", metadata=evidence
    )
    chaperone = Chaperone()
    dramatiq.get_broker().add_middleware(chaperone)
    try:
        for snippet in snippets("limits.md"):
            exec(snippet, names)
        assert job.job_id in capsys.readouterr().out
        for usage in (150_000_000, 250_000_000):
            publish(JobMemoryExceeded(job_id=job.job_id, memory_limit=100_000_000, memory_usage=usage))
        assert finish_events()
    finally:
        off(JobMemoryExceeded, names["kill_severe"])
        chaperone.close()

    asked = current().rows("SELECT target, command, issued_by FROM {commands}")
    assert asked == [("w1", "kill", "kill_severe")]
    facts = health.JobFacts(job_id="j", actor_name="a", queue="q", retries=0, age_s=1.0, metadata={"rows": 100, "refused": 3})
    assert names["refused_rows"](facts) == ("degraded", "3% of the rows are refused")
    assert names["render"].options["on_memory"] == "interrupt"


def test_isolation(chaperone_env: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a module, for a process of its own has to import it."""
    (snippet,) = snippets("isolation.md")
    prelude = "import os, dramatiq\nfrom dramatiq.brokers.stub import StubBroker\nfrom dramatiq_chaperone import Chaperone\n"
    prelude += "broker = StubBroker()\nbroker.add_middleware(Chaperone(watcher=True))\ndramatiq.set_broker(broker)\n"
    prelude += "def draw(folder, page):\n    open(f'{folder}/{page}', 'w').write(str(os.getpid()))\n\n"
    (tmp_path / "guide_isolation.py").write_text(prelude + snippet)
    monkeypatch.syspath_prepend(str(tmp_path))
    guide = importlib.import_module("guide_isolation")
    pages = tmp_path / "pages"
    pages.mkdir()
    worker = dramatiq.Worker(guide.broker, worker_threads=1, worker_timeout=50)
    worker.start()
    try:
        guide.render.send(str(pages), 3)
        guide.broker.join("default")
        worker.join()
    finally:
        worker.stop()
        guide.broker.close()
        dramatiq.set_broker(None)  # type: ignore[arg-type]  # as it was: none
    (pid,) = {(pages / name).read_text() for name in "012"}
    assert int(pid) != os.getpid()


def test_isolation_names_tests_that_exist() -> None:
    text = (DOCS / "isolation.md").read_text()
    named = set(re.findall(r"::(test_\w+)", text))
    assert named <= set(re.findall(r"^def (test_\w+)", (ROOT / "tests/e2e/test_isolation.py").read_text(), flags=re.MULTILINE))
    assert len(named) >= 8


def test_crashes(names: dict[str, Any]) -> None:
    names["broker"] = dramatiq.get_broker()
    names["broker"].add_middleware(Chaperone())
    for snippet in snippets("crashes.md"):
        exec(snippet, names)
    assert names["render"].options["max_crashes"] == 1


def test_events(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    for snippet in snippets("events.md"):
        exec(snippet, names)
    try:
        publish(JobMovedToDeadLetterQueue(job_id="j", actor_name="send_mail", exception="OSError", failed_at=datetime.now(UTC)))
        assert finish_events()
    finally:
        off(JobMovedToDeadLetterQueue, names["page_somebody"])
    assert capsys.readouterr().out == "send_mail gave up: OSError\n"


def test_breakers(chaperone_env: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    charged: list[Any] = []

    async def charge_async(order: Any) -> None:
        charged.append(order)

    broker = StubBroker(middleware=[])
    broker.actor_options |= OPTIONS
    here = SimpleNamespace(actor=functools.partial(dramatiq.actor, broker=broker))
    names: dict[str, Any] = {"charge": charged.append, "charge_async": charge_async, "order": 7, "dramatiq": here}
    text = (DOCS / "breakers.md").read_text()
    try:
        for snippet in snippets("breakers.md"):
            exec(snippet, names)
        asyncio.run(names["pay"](8))
        assert charged == [7] * 5 + [8]
        names["payments"].force_open()
        assert names["balance"](1) == "unknown"
        with pytest.raises(names["BreakerOpen"]):
            names["refund"](7)
        states = {state.service: state for state in names["breakers"]()}
        assert (states["payments"].mode, states["search"].state) == ("forced_open", "closed")
    finally:
        registry().clear()
    assert capsys.readouterr().out.startswith("payments closed 0 0.0 None")
    (example,) = re.findall(r"^```toml\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "chaperone.toml").write_text(example)
    settings = Settings.load({}, environ={"CHAPERONE_CONFIG": str(tmp_path / "chaperone.toml")})
    assert settings.breakers == {"payments": {"failure_threshold": 3, "timeout": 30}}
    table = text.partition("## Options")[2].partition("## ")[0]
    documented = re.findall(r"`(\w+)`", table)
    assert set(BREAKER_OPTIONS) <= set(documented)


def test_settings(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```", (DOCS / "settings.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "chaperone.toml").write_text(example)
    settings = Settings.load({}, environ={"CHAPERONE_CONFIG": str(tmp_path / "chaperone.toml")})
    assert (settings.timeout, settings.excluded_queues, settings.alert_group_wait) == (600, ("mail*",), 10)


@pytest.mark.parametrize("guide", ["metrics.md", "grafana.md"])
def test_the_configuration_of_prometheus(guide: str, tmp_path: Path) -> None:
    """Prometheus takes it, all that a guide has together."""
    promtool = shutil.which("promtool")
    if promtool is None:
        servers.missing("promtool", "it is not installed (Debian: prometheus)")
    parts = re.findall(r"^```yaml\n(.*?)^```", (DOCS / guide).read_text(), flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "prometheus.yml").write_text("".join(parts))
    shutil.copy(ROOT / "grafana" / "prometheus" / "rules.yaml", tmp_path)
    command = [str(promtool), "check", "config", str(tmp_path / "prometheus.yml")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
