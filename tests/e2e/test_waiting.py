"""Jobs of a real fleet that need a service: it goes down, is left alone, recovers, and every job completes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.e2e.conftest import Fleet
from tests.e2e.test_deferral import chaperone
from tests.scaling import scaled
from tests.waiting import wait_until

PROCESSES, THREADS = 4, 2
THRESHOLD = 5


class Shop:
    """A server that is made to fail.  Attributes: *failed*, *served*: calls by what they got."""

    def __init__(self) -> None:
        self.is_down = True
        self.failed = self.served = 0
        shop, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with lock:
                    is_down = shop.is_down
                    if is_down:
                        shop.failed += 1
                    else:
                        shop.served += 1
                self.send_response(503 if is_down else 200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def shop() -> Iterator[Shop]:
    made = Shop()
    yield made
    made.close()


def test_a_worker_that_starts_knows_of_an_open_breaker_before_its_first_job(
    make_fleet: Callable[..., Fleet], shop: Shop, redis_url: str
) -> None:
    fleet = make_fleet(redis_url, SHOP=shop.url, QUEUE="default", SHOP_QUEUE="shop")
    fleet.app = "tests.e2e.waiting_app"
    shop.is_down = False
    fleet.run("breaker('shop').force_open()")
    fleet.send("order.send()", 20)
    master = fleet.start(processes=2, threads=2)
    wait_until(lambda: "waiting for shop" in chaperone(fleet, "status"), timeout_s=30, what="it to be told")
    assert shop.served == 0
    fleet.run("breaker('shop').auto()")
    fleet.wait_for(completed=20)
    assert shop.served == 20
    assert master.stop() == 0


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
@pytest.mark.parametrize("queue", ["mixed", "own"])
def test_a_service_that_is_down_is_left_alone_and_every_job_completes(
    make_fleet: Callable[..., Fleet], shop: Shop, request: pytest.FixtureRequest, broker: str, queue: str
) -> None:
    url, queues = request.getfixturevalue(f"{broker}_url"), ("default", "shop")
    if broker == "rabbitmq":
        make_queue = request.getfixturevalue("rabbitmq_queue")
        queues = make_queue(), make_queue()
    fleet = make_fleet(url, SHOP=shop.url, QUEUE=queues[0], SHOP_QUEUE=queues[queue == "own"])
    fleet.app = "tests.e2e.waiting_app"
    jobs = scaled(1000, at_least=60)
    master = fleet.start(processes=PROCESSES, threads=THREADS)
    fleet.send("order.send()", jobs)

    def opened() -> int:
        return len(fleet.sql("SELECT 1 FROM events WHERE name = 'CircuitBreakerOpened'"))

    def deferred() -> list[str]:
        told = [json.loads(data) for (data,) in fleet.sql("SELECT data FROM events WHERE name = 'JobDeferred'")]
        return [each["reason"] for each in told]

    wait_until(lambda: opened() >= 3, timeout_s=60, what="a trial that fails, and another")
    wait_until(lambda: "waiting for shop" in chaperone(fleet, "status"), timeout_s=60, what="it to be told")
    shop.is_down = False
    fleet.wait_for(completed=jobs)
    seen, trials, alone = shop.failed, opened() - 1, sum(fleet.notes("alone").values())
    (retries,) = fleet.sql("SELECT sum(retries), sum(attempt) FROM supervised_jobs")
    print(f"{broker}, {queue}: {jobs} jobs; {seen} calls while it was down, {trials} trials, {alone} not told in time; "
          f"{len(set(deferred()))} reasons, {len(deferred())} deferrals told")  # fmt: skip
    # On a machine that is busy the store may take longer than a call waits for it: then its thread goes on by itself.
    assert seen <= THRESHOLD + PROCESSES * THREADS + trials + alone
    assert shop.served == jobs, "each once"
    assert retries == (shop.failed, jobs + shop.failed), "one for each failed call, none for a deferral"
    assert set(deferred()) == ({"waiting for shop"} if queue == "mixed" else set())
    assert master.stop() == 0
