"""Builds the image for the CPU, and runs it in all the ways that it must support: `make image-test`.

Prints a line for each case. The exit status is 1 if one fails. Needs Docker or Podman. Where no registry can
be reached, it also needs debootstrap, buildah and root, to make a stand-in for the image that the Dockerfile
begins with. The first server downloads the embedded model from PyPI.
"""

import argparse
import contextlib
import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.image.cases import CASES, Lab, run
from tests.image.engine import Engine, EngineError, find_engine, leave_hybrid_cgroups
from tests.image.pip_settings import pip_mounts
from tests.image.stand_in import find_base

ROOT = Path(__file__).parents[2]
_CONFIGURATION = """\
model:
  name: smollm2-135m-instruct
  source: embedded
engine:
  quantization: integer
  kv_cache_gib: 0.5
steering:
  train_at_start: false
  questions: 0
"""


def main() -> None:
    given = _read_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no container is left
    command = given.engine or find_engine()
    if command == "podman":
        leave_hybrid_cgroups()
    with tempfile.TemporaryDirectory(prefix="tiller-image-") as scratch:
        folder = Path(scratch)
        folder.chmod(0o755)  # containers read the files in it
        engine = Engine(command, pip_mounts(folder) if command == "podman" else {})
        try:
            passed = _test(engine, given, folder)
        except EngineError as error:
            sys.exit(f"image-test: {error}")
    sys.exit(0 if passed else 1)


def _test(engine: Engine, given: argparse.Namespace, folder: Path) -> bool:
    base = find_base(engine, given.base or _base_of_dockerfile(), folder)
    print(f"{engine.command}, from {base}", flush=True)
    if not given.no_build:
        _build(engine, given, base)
    configuration = folder / "config.yaml"
    configuration.write_text(_CONFIGURATION)
    lab = Lab(engine, given.image, base, configuration, f"tiller-image-test-{os.getpid()}")
    try:
        return run(lab, given.case or list(CASES))
    finally:
        engine.remove(lab.cache, lab.data, kind="volume")


def _build(engine: Engine, given: argparse.Namespace, base: str) -> None:
    start = time.monotonic()
    arguments = {"BASE": base, "TORCH_INDEX": given.torch_index}
    logs = ROOT / "build"
    logs.mkdir(exist_ok=True)
    engine.build(ROOT, given.image, "cpu", arguments, logs / "image.log")
    print(f"ok     {'build':26} {time.monotonic() - start:.0f} s", flush=True)


def _base_of_dockerfile() -> str:
    [name] = re.findall(r"^ARG BASE=(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return f"docker.io/library/{name}"


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.image", description=__doc__)
    parser.add_argument(
        "--engine", choices=("docker", "podman"), help="default: Docker if it runs, else Podman"
    )
    parser.add_argument("--base", help="the image to begin with; default: as in the Dockerfile")
    parser.add_argument("--torch-index", default="", help="PyTorch's index of CPU wheels, for a small image")
    parser.add_argument(
        "--image", default="localhost/tiller:test", help="the name of the image that is built"
    )
    parser.add_argument("--no-build", action="store_true", help="test an image that is there already")
    parser.add_argument(
        "--case", action="append", choices=list(CASES), help="only this case; may be repeated"
    )
    return parser.parse_args()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
