"""Keeps the results in files. Writes them after every line, so that a cut leaves what was measured."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.figures import HEADER, Figure, Limits, Note, row
from benchmarks.gpu.oracles import Outcome

_LIMITS = {
    "bytes_per_second": "bytes read and written per second, in a copy of a large tensor",
    "flops": "floating-point operations per second in a large matrix product",
}


class Results:
    """The content of gpu.json and gpu.svg in a folder. Prints each line at once."""

    def __init__(self, folder: Path, settings: Mapping[str, object]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._settings = dict(settings)
        self._environment: dict[str, object] = {}
        self._limits: Limits | None = None
        self._parts: list[dict[str, object]] = []
        self._figures: list[Figure] = []
        self._tests: list[Outcome] = []
        self._notes: list[str] = []
        self._write()

    @property
    def have_failed(self) -> bool:
        """Whether a part or a test failed. A lack of time or of a package is no failure."""
        return any(part["fault"] and not part["stopped"] for part in self._parts) or any(
            test.status == "failed" for test in self._tests
        )

    def set_environment(self, environment: Mapping[str, object]) -> None:
        """The first environment stays: all parts run on the same device."""
        if not self._environment:
            self._environment = dict(environment)
            versions = ", ".join(f"{key} {value}" for key, value in environment.items() if value is not None)
            print(versions, flush=True)
            self._write()

    def begin(self, name: str, seconds: float) -> None:
        """Prints a heading, and the head of a table if the part has one."""
        print(f"\n## {name}, at most {seconds:.0f} s\n", flush=True)
        if name != "tests":
            print(HEADER, flush=True)

    def add(self, item: object) -> None:
        """Adds a Figure, Limits, Note or Outcome."""
        match item:
            case Limits():
                self._limits = item
                print(f"{item.bytes_per_second / 1e9:.0f} GB/s, {item.flops / 1e12:.2f} TFLOP/s", flush=True)
            case Figure():
                self._figures.append(item)
                print(row(item), flush=True)
            case Outcome():
                self._tests.append(item)
                line = f"{item.file}: {item.status}, {item.summary}, {item.seconds:.1f} s"
                print(line, flush=True)
            case Note():
                self._notes.append(item.text)
                print(item.text, flush=True)
            case _:
                raise TypeError(f"{type(item).__name__} is no result")
        self._write()

    def end(
        self, name: str, seconds: float, fault: str | None, *, stopped: bool, details: Mapping[str, float]
    ) -> None:
        """`fault`: why the part is not complete. `stopped`: only time or a package was missing."""
        record = {"part": name, "seconds": seconds, "fault": fault, "stopped": stopped, **details}
        self._parts.append(record)
        print(f"{name}: {fault or 'complete'}, {seconds:.1f} s", flush=True)
        self._write()

    def _write(self) -> None:
        content = {
            **self._environment,
            **self._settings,
            "limits": self._limits and asdict(self._limits),
            "limits_meaning": _LIMITS,
            "parts": self._parts,
            "notes": self._notes,
            "figures": [asdict(figure) for figure in self._figures],
            "tests": [asdict(test) for test in self._tests],
        }
        self._replace("gpu.json", json.dumps(content, indent=2) + "\n")
        if find_spec("matplotlib"):
            from benchmarks.gpu.plot import draw

            device = str(self._environment.get("device", ""))
            self._replace("gpu.svg", draw(self._figures, device, str(self._settings.get("dtype", ""))))

    def _replace(self, name: str, text: str) -> None:
        """Replaces a file as a whole. A reader never sees a part of it."""
        temporary = self._folder / f".{name}.new"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self._folder / name)
