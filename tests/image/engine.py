"""Docker or Podman, through the commands that both have."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

Mounts = dict[str, str]
"""The path of the host or the name of a volume, by path in the container. They are read-only."""

_ENOUGH = 4096
"""More open files and processes than a server needs."""
_HYBRID = Path("/sys/fs/cgroup/unified")


class EngineError(Exception):
    """The engine has refused something. The message has its last lines."""


@dataclass(frozen=True)
class Engine:
    command: str
    """`docker` or `podman`."""
    mounts: Mounts = field(default_factory=dict)
    """What every build and every container sees besides."""

    @property
    def is_podman(self) -> bool:
        return self.command == "podman"

    def build(self, folder: Path, image: str, target: str, arguments: dict[str, str], log: Path) -> None:
        """Raises EngineError. Layers of earlier builds are not used."""
        options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        if self.is_podman:
            # `docker` keeps HEALTHCHECK. `chroot` works where a build may not start containers.
            options += ["--format=docker", "--isolation=chroot", *self._read_only()]
        command = [self.command, "build", "--no-cache", f"--target={target}", f"--tag={image}", *options]
        with log.open("w") as output:
            if subprocess.run([*command, str(folder)], stdout=output, stderr=output).returncode:
                raise EngineError(f"the image cannot be built; the last lines of {log}:\n{_tail(log)}")

    def start(self, image: str, name: str, options: Sequence[str], arguments: Sequence[str] = ()) -> None:
        """Starts a container in the background, in the host's network."""
        self.run("run", "--detach", f"--name={name}", *self._common(options), image, *arguments)

    def once(self, image: str, options: Sequence[str], *arguments: str) -> str:
        """What a container prints that runs until its command ends. Raises EngineError."""
        return self.run("run", "--rm", *self._common(options), image, *arguments)

    def run(self, *arguments: str, seconds: float = 600) -> str:
        """What the engine prints on stdout. Raises EngineError."""
        done = subprocess.run([self.command, *arguments], capture_output=True, text=True, timeout=seconds)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise EngineError(f"{self.command} {arguments[0]}: {said[-500:]}")
        return done.stdout.strip()

    def has(self, image: str) -> bool:
        return not subprocess.run([self.command, "image", "inspect", image], capture_output=True).returncode

    def log_of(self, name: str) -> str:
        done = subprocess.run([self.command, "logs", name], capture_output=True, text=True)
        return done.stdout + done.stderr

    def remove(self, *names: str, kind: str = "rm") -> None:
        command = [self.command, *(["volume", "rm"] if kind == "volume" else ["rm"]), "--force", *names]
        subprocess.run(command, capture_output=True)

    def _common(self, options: Sequence[str]) -> list[str]:
        added = ["--network=host", "--no-healthcheck"]
        if self.is_podman:
            added += ["--log-driver=k8s-file"]
            # Else Podman raises these limits, which a sandbox may forbid.
            limits = {"nofile": _limit(resource.RLIMIT_NOFILE), "nproc": _limit(resource.RLIMIT_NPROC)}
            given = " ".join(options)
            added += [f"--ulimit={name}={n}:{n}" for name, n in limits.items() if f"{name}=" not in given]
        return [*added, *self._read_only(), *options]

    def _read_only(self) -> list[str]:
        return [f"--volume={source}:{target}:ro" for target, source in self.mounts.items()]


def _limit(kind: int) -> int:
    soft, _ = resource.getrlimit(kind)
    return _ENOUGH if soft == resource.RLIM_INFINITY else min(soft, _ENOUGH)


def _tail(file: Path) -> str:
    return "\n".join(file.read_text(errors="replace").splitlines()[-20:])


def find_engine() -> str:
    """`docker` if its daemon answers, else `podman`. Exits if there is neither."""
    if shutil.which("docker") and not subprocess.run(["docker", "info"], capture_output=True).returncode:
        return "docker"
    if shutil.which("podman"):
        return "podman"
    sys.exit("image-test: needs Docker, or Podman (Debian, Ubuntu: apt-get install podman buildah)")


def leave_hybrid_cgroups() -> None:
    """Podman's runtimes refuse hybrid cgroups. Goes on without version 2, as this process alone sees it."""
    if os.geteuid() == 0 and os.path.ismount(_HYBRID):
        script = f'umount {_HYBRID} && exec "$@"'
        command = [sys.executable, "-m", "tests.image", *sys.argv[1:]]
        os.execvp("unshare", ["unshare", "--mount", "sh", "-c", script, "sh", *command])
