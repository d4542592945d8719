"""A server that fails for a while, and callers that leave it alone meanwhile."""

from __future__ import annotations

import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import urlopen

from dramatiq_chaperone import BreakerOpen, breaker
from dramatiq_chaperone.events import CircuitBreakerClosed, CircuitBreakerOpened, on

is_down = threading.Event()
served: Counter[str] = Counter()
said: Counter[str] = Counter()


class Shop(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        served["while it is down" if is_down.is_set() else "while it is up"] += 1
        self.send_response(503 if is_down.is_set() else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@on(CircuitBreakerOpened)
def opened(event: CircuitBreakerOpened) -> None:
    print(f"opened after {event.failure_count} failures: {event.last_error}", flush=True)


@on(CircuitBreakerClosed)
def closed(event: CircuitBreakerClosed) -> None:
    print("closed again", flush=True)


shop = breaker("shop", failure_threshold=3, timeout=0.5, half_open_attempts=1)


@shop
def order(url: str) -> None:
    urlopen(url).close()  # noqa: S310 - it is our own server; a 503 raises


def customer(url: str, until: float) -> None:
    while time.monotonic() < until:
        try:
            order(url)
            said["served"] += 1
        except BreakerOpen as error:
            said["refused at once"] += 1
            time.sleep(min(0.05, error.retry_after))
        except OSError:
            said["failed"] += 1
        time.sleep(0.01)


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Shop)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    customers = [threading.Thread(target=customer, args=(url, time.monotonic() + 6)) for _ in range(4)]
    for each in customers:
        each.start()
    time.sleep(1)
    is_down.set()
    time.sleep(2)
    is_down.clear()
    for each in customers:
        each.join()
    server.shutdown()
    server.server_close()
    for words, number in (*sorted(served.items()), *sorted(said.items())):
        print(f"{words}: {number}")
    print(f"at the end it is {shop.current_state}")


if __name__ == "__main__":
    main()
