"""The recipes of docs/web-frameworks.md, as they stand there: a real worker, and each framework's own test client."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.conftest import StartProcess, StartWorker

DOC = (Path(__file__).parents[2] / "docs" / "web-frameworks.md").read_text()

#: What the docs leave to the reader's own project.
DJANGO_REST = {
    "urls.py": """
from django.urls import path

from shop import views

urlpatterns = [path("exports", views.start), path("exports/<str:job_id>", views.progress)]
""",
    "django_worker.py": """
import django_dramatiq.setup

import shop.tasks
""",
    "web.py": """
import django

django.setup()

from django.test import Client

app = Client
""",
    "shop/__init__.py": "",
}
CLIENTS = {
    "Flask": "client = app.test_client()",
    "FastAPI": "from fastapi.testclient import TestClient; client = TestClient(app)",
    "Django": "client = app()",
}
#: A visitor: starts an export, and looks at it until it is done.
VISITOR = """
import sys, time
from web import app
{client}

def body(response):
    return response.json() if callable(response.json) else response.json

sent = client.post("/exports")
assert sent.status_code == 202, sent
job = body(sent)["job"]
deadline = time.monotonic() + 30
while time.monotonic() < deadline:
    seen = client.get(f"/exports/{{job}}")
    if seen.status_code == 200 and body(seen)["status"] == "completed":
        assert body(seen)["progress"] == 100
        assert body(seen)["seconds"] >= 0
        sys.exit(0)
    # In its first moment the store is a file without tables.
    assert seen.status_code in (200, 404) or time.monotonic() < deadline - 27, seen
    time.sleep(0.1)
sys.exit("the job did not complete")
"""


def files(section: str) -> dict[str, str]:
    text = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", DOC, flags=re.DOTALL | re.MULTILINE)
    assert text is not None
    return dict(re.findall(r"\*\*`([\w/.]+)`\*\*.*?```python\n(.*?)^```", text[1], flags=re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("framework", ["Flask", "FastAPI", "Django"])
def test_a_recipe_sends_a_job_and_shows_it(
    framework: str, start_worker: StartWorker, start_process: StartProcess, redis_url: str, state_dir: Path, tmp_path: Path
) -> None:
    project = files(framework)
    project = {**project, **DJANGO_REST} if framework == "Django" else {**files("The jobs"), **project}
    if framework == "Django":
        project["settings.py"] += "\nSECRET_KEY = 'test'\nROOT_URLCONF = 'urls'\nALLOWED_HOSTS = ['*']\nUSE_TZ = True\nDATABASES = {}\n"
    for name, text in project.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "visitor.py").write_text(VISITOR.format(client=CLIENTS[framework]))
    env = {"REDIS_URL": redis_url, "CHAPERONE_STATE_DIR": str(state_dir), "DJANGO_SETTINGS_MODULE": "settings"}

    start_worker("django_worker" if framework == "Django" else "tasks", env=env)
    visitor = start_process(sys.executable, "visitor.py", env=env)
    assert visitor.wait() == 0, visitor.tail()
