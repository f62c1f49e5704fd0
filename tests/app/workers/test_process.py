import pytest

from app.workers.process import environment_of
from inference.interface.config import EngineConfig

INTEGER, FLOAT32 = EngineConfig(quantization="integer"), EngineConfig()


@pytest.fixture(autouse=True)
def no_settings_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)


def test_threads_of_a_worker_do_not_poll_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER", "kept")
    assert environment_of(INTEGER)["OMP_WAIT_POLICY"] == "passive"
    assert int(environment_of(FLOAT32)["GOMP_SPINCOUNT"]) < 10_000
    assert "OMP_WAIT_POLICY" not in environment_of(FLOAT32)
    assert environment_of(FLOAT32)["OTHER"] == "kept"


@pytest.mark.parametrize("config", [INTEGER, FLOAT32])
def test_what_the_operator_sets_counts(config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    environment = environment_of(config)
    assert environment["OMP_WAIT_POLICY"] == "active"
    assert "GOMP_SPINCOUNT" not in environment
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert environment_of(config)["GOMP_SPINCOUNT"] == "7"
