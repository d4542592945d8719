"""The app that is measured, and the process that sends for it: ``python -m tests.benchmarks.app``.

Environment: BROKER_URL and NAMESPACE of the broker; MIDDLEWARE: bare, chaperone, prometheus or admin; NOTES, a file
to which a worker writes what it has used, each time that it has run another 100 messages; ACTORS, how many actors there
are; for admin also ADMIN_DATABASE, a file.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time

import dramatiq
from dramatiq.brokers.redis import RedisBroker

if os.environ.get("CHAPERONE_DATABASE_URL", "").startswith("sqlite"):
    # As after a plain `pip install`: peewee imports each driver that it finds, and here all of them are installed.
    sys.modules.update(dict.fromkeys(("psycopg", "psycopg2", "pymysql", "MySQLdb")))

MIDDLEWARE = os.environ.get("MIDDLEWARE", "bare")
BROKER_OPTIONS = {"url": os.environ["BROKER_URL"], "namespace": os.environ["NAMESPACE"]}


def make_broker() -> dramatiq.Broker:
    if MIDDLEWARE == "admin":
        return admin_broker()
    broker = RedisBroker(**BROKER_OPTIONS)
    if MIDDLEWARE == "chaperone":
        from dramatiq_chaperone import Chaperone

        broker.add_middleware(Chaperone())
    elif MIDDLEWARE == "prometheus":
        from dramatiq.middleware.prometheus import Prometheus

        broker.add_middleware(Prometheus())
    return broker


def admin_broker() -> dramatiq.Broker:
    """With django_dramatiq's AdminMiddleware, its other middleware being Dramatiq's own default."""
    import django
    from django.conf import settings
    from django.core.management import call_command
    from dramatiq.middleware import default_middleware

    middleware = [f"dramatiq.middleware.{each.__name__}" for each in default_middleware]
    settings.configure(
        INSTALLED_APPS=["django_dramatiq"],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": os.environ["ADMIN_DATABASE"],
                "OPTIONS": {
                    "timeout": 60,
                    "init_command": "PRAGMA journal_mode=wal; PRAGMA synchronous=normal",
                    "transaction_mode": "IMMEDIATE",
                },
            }
        },
        DRAMATIQ_BROKER={
            "BROKER": "dramatiq.brokers.redis.RedisBroker",
            "OPTIONS": BROKER_OPTIONS,
            "MIDDLEWARE": [*middleware, "django_dramatiq.middleware.AdminMiddleware", "django_dramatiq.middleware.DbConnectionsMiddleware"],
        },
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
        USE_TZ=True,
    )
    django.setup()
    call_command("migrate", verbosity=0)
    return dramatiq.get_broker()


broker = make_broker()
dramatiq.set_broker(broker)
_runs = itertools.count(1)


def noop(number: int, name: str) -> None:
    """Does nothing, but counts."""
    run = next(_runs)
    if run % 100 == 0:
        note(run)


def note(run: int) -> None:
    line = json.dumps({"pid": os.getpid(), "run": run, "at": time.monotonic(), "cpu": time.process_time()})
    fd = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


actors = [dramatiq.actor(noop, actor_name=f"noop_{number}") for number in range(int(os.environ.get("ACTORS", "1")))]
elsewhere = dramatiq.actor(noop, actor_name="elsewhere", queue_name="elsewhere")


def send() -> None:
    """For each number on standard input, send so many messages, and print the seconds that it took."""
    actor = actors[0]
    for line in sys.stdin:
        began = time.monotonic()
        for number in range(int(line)):
            actor.send(number, "name@example.org")
        print(time.monotonic() - began, flush=True)


if __name__ == "__main__":
    send()
