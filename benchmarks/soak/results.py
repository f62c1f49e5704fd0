"""Writes the results of a soak: soak.md and soak.json."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.soak.findings import PARTS, Soak, count_statuses, memory

Conditions = dict[str, Any]


def write(soak: Soak, faults: Sequence[str], conditions: Conditions, directory: Path) -> str:
    """Writes soak.md and soak.json. Returns the page."""
    page = render(soak, faults, conditions)
    (directory / "soak.md").write_text(page, encoding="utf-8")
    (directory / "soak.json").write_text(_to_json(soak, faults, conditions), encoding="utf-8")
    return page


def render(soak: Soak, faults: Sequence[str], conditions: Conditions) -> str:
    """The page, in Markdown."""
    machine = conditions["machine"]
    return "\n".join(
        [
            f"{conditions['started']:.16} UTC; {machine['processor']}, {machine['cores']} cores, "
            f"{machine['memory_gib']} GiB, {machine['system']}, commit {conditions['commit']}.",
            "",
            f"{conditions['minutes']:g} minutes, {conditions['concurrency']} clients, "
            f"seed {conditions['seed']}; memory growth limit: {conditions['tolerance']:g} MiB per minute.",
            "",
            *_request_table(soak),
            "",
            *_process_table(soak),
            "",
            *_gauge_table(soak),
            "",
            *([f"- {line}" for line in faults] or ["Nothing failed, grew or leaked."]),
            "",
        ]
    )


def _request_table(soak: Soak) -> list[str]:
    failed = [outcome.kind for outcome in soak.outcomes if outcome.problem]
    lines = ["| requests | sent | statuses | failed |", "|---|---|---|---|"]
    for kind, statuses in count_statuses(soak.outcomes).items():
        shown = ", ".join(f"{status}: {number}" for status, number in sorted(statuses.items()))
        lines.append(f"| {kind} | {statuses.total()} | {shown} | {failed.count(kind)} |")
    return [*lines, f"| all | {len(soak.outcomes)} | | {len(failed)} |"]


def _process_table(soak: Soak) -> list[str]:
    lines = [
        "| process | RSS at rest before, MiB | peak | at rest after | "
        "growth in the second half, MiB per minute | third quarter, last quarter | "
        "open files before, most, after | threads before, most, after |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, part in PARTS.items():
        found, before, after = memory(soak, part), part(soak.before), part(soak.after)
        files = max((part(sample).open_files for sample in soak.samples), default=0)
        threads = max((part(sample).threads for sample in soak.samples), default=0)
        lines.append(
            f"| {name} | {found.before:.1f} | {found.peak:.1f} | {found.after:.1f} | "
            f"{found.growth:+.2f} | {found.growth_by_quarter[0]:+.2f}, {found.growth_by_quarter[1]:+.2f} | "
            f"{before.open_files}, {files}, {after.open_files} | "
            f"{before.threads}, {threads}, {after.threads} |"
        )
    return lines


def _gauge_table(soak: Soak) -> list[str]:
    lines = ["| gauge | at rest before | most | at rest after |", "|---|---|---|---|"]
    for gauge, value in soak.after.gauges.items():
        most = max((sample.gauges.get(gauge, 0.0) for sample in soak.samples), default=0.0)
        lines.append(f"| {gauge} | {soak.before.gauges.get(gauge, 0.0):g} | {most:g} | {value:g} |")
    return lines


def _to_json(soak: Soak, faults: Sequence[str], conditions: Conditions) -> str:
    content = {
        **conditions,
        "faults": faults,
        "statuses": count_statuses(soak.outcomes),
        "failed": [asdict(outcome) for outcome in soak.outcomes if outcome.problem],
        "memory_mib": {name: asdict(memory(soak, part)) for name, part in PARTS.items()},
        "before": asdict(soak.before),
        "after": asdict(soak.after),
        "samples": [asdict(sample) for sample in soak.samples],
    }
    return json.dumps(content, indent=2) + "\n"
