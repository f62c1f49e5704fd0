"""pip's settings of this machine, for a container."""

from pathlib import Path

from tests.image import pip_settings

LISTED = """\
:env:.timeout='180'
global.extra-index-url='file:///srv/index/simple\\nhttps://index.example/simple'
global.timeout='15'
"""


def test_variables_override_files() -> None:
    assert pip_settings.parse(LISTED) == {
        "extra-index-url": "file:///srv/index/simple https://index.example/simple",
        "timeout": "180",
    }


def test_local_files_and_folders_are_found(tmp_path: Path) -> None:
    certificate, index, wheels = tmp_path / "ca.pem", tmp_path / "index" / "simple", tmp_path / "wheels"
    certificate.touch()
    index.mkdir(parents=True)
    wheels.mkdir()
    settings = {
        "cert": str(certificate),
        "extra-index-url": f"file://{index} https://index.example/simple",
        "find-links": f"{wheels} {tmp_path}/missing",
    }
    expected = {str(certificate), str(index.parent), str(wheels)}
    assert set(pip_settings.local_files(settings)) == expected
