"""Workers: what runs where, what it takes, and what was lost."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as builders

from .parts import RANGE, RED, Query, age, board, graph, hosts, increase, level, number, of, or_zero, ranking, rate, rows

_NO_WORKER = "No worker lives"


def dashboard() -> builders.Dashboard:
    """The dashboard."""
    return board(
        "chaperone-workers",
        "Worker processes by host, what they take, those that were lost, and what Chaperone itself costs.",
        ("host", "queue", "actor"),
        ("Hosts", [*_numbers(), _table()]),
        ("What they take", _use()),
        ("Losses", _losses()),
        ("What Chaperone costs", _cost()),
    )


def _numbers() -> list[object]:
    return [
        number("Processes", "Worker processes that live.", "short", Query(or_zero(f"sum({of('chaperone_worker_processes')})")), width=6),
        number("Running jobs", "Jobs that run.", "short", Query(or_zero(f"sum({of('chaperone_worker_jobs')})")), width=6),
        number(
            "Busy",
            "Share of the threads that run a job.",
            "percentunit",
            Query(f"sum({of('chaperone_worker_jobs')}) / sum({of('chaperone_worker_threads')})"),
            width=6,
            empty=_NO_WORKER,
        ),
        number(
            "Oldest run",
            "How long the oldest run goes on.",
            "s",
            Query(f"max({age('chaperone_oldest_start_timestamp_seconds', by='queue')})"),
            width=6,
            empty="Nothing runs",
        ),
    ]


def _changes(name: str) -> str:
    return f"sum by (host) (changes({of(name)}{RANGE}))"


def _table() -> object:
    columns = [
        ("chaperone_worker_processes", "Processes", "short"),
        ("chaperone_worker_threads", "Threads", "short"),
        ("chaperone_worker_consumers", "Consumers", "short"),
        ("chaperone_worker_jobs", "Jobs", "short"),
        ("chaperone_worker_memory_bytes", "Memory", "bytes"),
        ("chaperone_worker_cpu_cores", "CPU cores", "none"),
        ("chaperone_worker_open_files", "Open files", "short"),
    ]
    return rows(
        "Hosts",
        "Each host with a worker that lives.  Restarts and losses are those that were seen in this time range.",
        [
            *((Query(hosts(name), title), unit) for name, title, unit in columns),
            (Query(_changes("chaperone_worker_newest_start_timestamp_seconds"), "Restarts"), "short"),
            (Query(_changes("chaperone_worker_last_loss_timestamp_seconds"), "Losses"), "short"),
            (Query(f"time() - min by (host) ({of('chaperone_worker_oldest_beat_timestamp_seconds')})", "Oldest heartbeat"), "s"),
        ],
        by="host",
        sort="Jobs",
        empty=_NO_WORKER,
        links_to=[("host", "chaperone-workers")],
    )


def _use() -> list[object]:
    return [
        graph(
            "Memory",
            "Resident memory of worker processes, by host.",
            "bytes",
            Query(f"topk(10, {hosts('chaperone_worker_memory_bytes')})", "{{host}}"),
            stacked=True,
            empty=_NO_WORKER,
        ),
        graph(
            "CPU",
            "Cores that worker processes use, by host.",
            "short",
            Query(f"topk(10, {hosts('chaperone_worker_cpu_cores')})", "{{host}}"),
            stacked=True,
            empty=_NO_WORKER,
        ),
        graph(
            "Jobs",
            "Jobs that run, by host.",
            "short",
            Query(f"topk(10, {hosts('chaperone_worker_jobs')})", "{{host}}"),
            stacked=True,
            empty=_NO_WORKER,
        ),
        graph(
            "Silence",
            "How long ago the worker of each host was heard of that has been silent for the longest.",
            "s",
            Query(f"topk(10, time() - min by (host) ({of('chaperone_worker_oldest_beat_timestamp_seconds')}))", "{{host}}"),
            empty=_NO_WORKER,
        ),
    ]


def _losses() -> list[object]:
    causes = f"{increase('chaperone_lost_total', by='actor, cause')} > 0"
    return [
        graph(
            "Workers lost",
            "Worker processes that died or fell silent, by cause.",
            "short",
            Query(increase("chaperone_workers_lost_total", by="cause", window="[$__rate_interval]"), "{{cause}}"),
            bars=True,
            empty="No worker was ever lost",
        ),
        graph(
            "Worker processes on record",
            "By status.",
            "short",
            Query(level("chaperone_workers", by="status"), "{{status}}"),
            empty="No worker is on record",
        ),
        ranking(
            "Runs lost",
            "Runs that were lost with their worker in this time range, by actor and by how the worker ended.",
            "short",
            Query(causes, "{{actor}}: {{cause}}"),
            empty="No run was lost in this time range",
            steps=((None, RED),),
        ),
        graph(
            "Losses of hosts",
            "When a worker of a host was lost last; of those within the last day.",
            "s",
            Query(age("chaperone_worker_last_loss_timestamp_seconds", by="host"), "{{host}}"),
            empty="No worker was lost in the last day",
        ),
    ]


def _cost() -> list[object]:
    return [
        graph(
            "CPU of Chaperone",
            "Cores that watchers and exporters use, by who is scraped; and what sampling takes in all workers.",
            "short",
            Query(rate("chaperone_process_cpu_seconds_total", by="instance"), "{{instance}}"),
            Query(rate("chaperone_sampler_cpu_seconds_total"), "sampling"),
            empty="No exporter",
        ),
        graph(
            "Memory of Chaperone",
            "Resident memory of watchers and exporters, by who is scraped.",
            "bytes",
            Query(f"max by (instance) ({of('chaperone_process_memory_bytes')})", "{{instance}}"),
            empty="No exporter",
        ),
        graph(
            "Journals",
            "What is not in the store yet, by host, in whole segments of 1 MB.",
            "bytes",
            Query(f"topk(10, {hosts('chaperone_journal_backlog_bytes')})", "{{host}}"),
            empty=_NO_WORKER,
        ),
        graph(
            "Reading the store",
            "How long each exporter's last reading of the store took.",
            "s",
            Query(f"max by (instance) ({of('chaperone_read_duration_seconds')})", "{{instance}}"),
            empty="No exporter",
        ),
    ]
