"""The first version: every table.  Frozen: what changes later is a migration of its own.

One line a column: name, type, and ``!`` for not null or ``=value`` for a default.  Types: ``ref:table`` is a key of
that table, ``name``, ``key`` and ``word`` are text of at most 255, 191 and 40 characters; the runner knows the rest.
"""

from __future__ import annotations

from typing import Final

TABLES: Final[dict[str, str]] = {
    "supervised_jobs": """
        job_id key !
        created_at time !
        updated_at time !
        actor_name name
        queue name
        broker word
        priority int
        enqueued_at time
        payload json
        payload_complete flag
        initiator_type name
        initiator_id name
        parent_job_id key
        tenant name
        status word !
        attempt int =0
        retries int =0
        deliveries int =0
        crashes int =0
        completed_at time
        failed_at time
        retry_at time
        eta time
        run_id key
        started_at time
        ended_at time
        timeout_at time
        heartbeat_interval real
        missed_heartbeats int
        last_heartbeat_at time
        sampled_at time
        limits json
        worker_id key
        thread name
        memory_usage int
        memory_peak int
        memory_attribution word
        cpu_usage real
        cpu_seconds real
        progress real
        progress_current real
        progress_total real
        phase name
        health word
        metadata json
        level int =0
        run_retries int
        flush int
        ended_by int
        twice_by int
        other_run_id key
        other_run_retries int
        other_worker_id key
        other_started_at time
        other_by int
        decided mysql_only
    """,
    "supervised_job_errors": """
        supervised_job_id ref:supervised_jobs !
        created_at time !
        run_id key !
        attempt int
        outcome word !
        worker_id key
        thread name
        started_at time
        ended_at time
        exit_cause name
        memory_peak int
        cpu_seconds real
        exception name
        message text
        trace text
        context json
    """,
    "open_runs": """
        run_id key !
        job_id key !
        worker_id key !
        retries int
        started_at time
        created_at time !
    """,
    "heartbeats": """
        supervised_job_id ref:supervised_jobs !
        created_at time !
        run_id key
        heartbeat_id key
        kind word !
        memory_usage int
        cpu_usage real
        progress_current real
        progress_total real
        metadata json
    """,
    "resource_violations": """
        supervised_job_id ref:supervised_jobs
        worker_id key
        created_at time !
        run_id key
        type word !
        limit real
        actual real
        attribution word
        metadata json
    """,
    "job_health_checks": """
        supervised_job_id ref:supervised_jobs !
        created_at time !
        run_id key
        status word !
        reason text
        metadata json
    """,
    "circuit_breakers": """
        service name !
        created_at time !
        updated_at time !
        state word !
        mode word !
        failure_count int =0
        success_count int =0
        last_failure_at time
        last_success_at time
        opened_at time
        permits int =0
        version int =0
    """,
    "dead_letter_jobs": """
        supervised_job_id keep:supervised_jobs
        job_id key !
        created_at time !
        actor_name name
        queue name
        reason word
        exception name
        message text
        trace text
        payload json
        payload_complete flag
        failed_at time !
        retried_at time
        retried_as key
    """,
    "workers": """
        worker_id key !
        created_at time !
        updated_at time !
        host name
        host_identity name
        pid int
        process_started_at time
        pool name
        supervisor name
        broker word
        broker_id key
        queues text
        threads int
        status word !
        started_at time
        beat int =0
        last_heartbeat_at time
        stopped_at time
        rss int
        cpu real
        jobs_processed int =0
        jobs_failed int =0
        gauges json
        exit_code int
        exit_cause name
        versions text
    """,
    "queues": """
        queue name !
        broker word !
        ready int
        delayed int
        dead int
        oldest_at time
        paused flag
        read_at time !
    """,
    "commands": """
        created_at time !
        target key !
        command word !
        arguments json
        issued_by name
        expires_at time
        claimed_at time
        finished_at time
        outcome word
        detail text
    """,
    "events": """
        created_at time !
        name word !
        job_id key
        worker_id key
        service name
        data json
    """,
    "alerts": """
        created_at time !
        updated_at time !
        fingerprint key !
        type word !
        severity word !
        status word !
        count int =0
        first_seen_at time !
        last_seen_at time !
        labels json
        evidence json
    """,
    "alert_deliveries": """
        alert_id ref:alerts !
        created_at time !
        channel name !
        attempt int =0
        result word
        error text
    """,
    "silences": """
        created_at time !
        matcher json !
        reason text
        owner name
        until time !
    """,
    "counters": """
        series word !
        name name !
        labels json
        value real !
    """,
    "rollups": """
        minute_at time !
        queue name !
        actor_name name !
        series word !
        runs_succeeded int =0
        runs_failed int =0
        runs_interrupted int =0
        runs_killed int =0
        runs_lost int =0
        duration_seconds real =0
        wait_seconds real =0
        cpu_seconds real =0
        retries int =0
        bucket_00 int =0
        bucket_01 int =0
        bucket_02 int =0
        bucket_03 int =0
        bucket_04 int =0
        bucket_05 int =0
        bucket_06 int =0
        bucket_07 int =0
        bucket_08 int =0
        bucket_09 int =0
        bucket_10 int =0
        bucket_11 int =0
        bucket_12 int =0
        bucket_13 int =0
        bucket_14 int =0
        bucket_15 int =0
        bucket_16 int =0
    """,
    "flushes": """
        process key !
        sequence int !
        updated_at time !
    """,
    "leases": """
        name key !
        holder key
        epoch int =0
        expires_at time
    """,
    "audit_log": """
        created_at time !
        who name
        what word !
        target name
        origin name
        result text
    """,
}

#: Indexes: columns, with ``unique`` before and a condition after; each is there for a query of queries.py, retention.py or the writer.
INDEXES: Final[dict[str, tuple[str, ...]]] = {
    "supervised_jobs": (
        "unique job_id",
        "created_at",
        "status, created_at",
        "queue, created_at",
        "actor_name, created_at",
        "worker_id, ended_at",
        "ended_by",
        "twice_by where twice_by is not null",
        "other_by where other_by is not null",
        "parent_job_id where parent_job_id is not null",
    ),
    "supervised_job_errors": ("supervised_job_id, created_at", "unique run_id", "worker_id"),
    "open_runs": ("unique run_id", "job_id", "worker_id", "created_at"),
    "heartbeats": ("supervised_job_id, created_at",),
    "resource_violations": ("supervised_job_id, created_at", "created_at"),
    "job_health_checks": ("supervised_job_id, created_at",),
    "circuit_breakers": ("unique service",),
    "dead_letter_jobs": ("supervised_job_id", "job_id", "failed_at"),
    "workers": ("unique worker_id", "status, last_heartbeat_at", "updated_at"),
    "queues": ("unique queue, broker",),
    "commands": ("target, claimed_at", "created_at"),
    "events": ("job_id, created_at", "worker_id, created_at", "created_at"),
    "alerts": ("fingerprint", "status, updated_at"),
    "alert_deliveries": ("alert_id",),
    "silences": ("until",),
    "counters": ("unique series", "name"),
    "rollups": ("unique series, minute_at", "minute_at"),
    "flushes": ("unique process", "updated_at"),
    "leases": ("unique name",),
    "audit_log": ("created_at",),
}
