import pytest

from tests.kubernetes.helm import Helm, find_helm


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    folder = tmp_path_factory.mktemp("helm")
    program = find_helm(folder)
    if program is None:
        pytest.skip("needs helm; on Linux with x86-64, a Python package brings it")
    return Helm(program, folder)
