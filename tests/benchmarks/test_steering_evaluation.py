"""An interrupted evaluation goes on with what it has kept."""

from pathlib import Path

import pytest

from benchmarks.steering.__main__ import Evaluation


class Work:
    count = 0

    def __call__(self) -> list[int]:
        self.count += 1
        return [self.count]


def evaluation(directory: Path | None) -> Evaluation:
    return Evaluation(None, None, None, directory)  # type: ignore[arg-type]


def test_what_is_kept_is_not_made_again(tmp_path: Path) -> None:
    work = Work()
    for directory in (tmp_path / "kept", tmp_path / "kept"):
        assert evaluation(directory)._kept("others/kind+1.pickle", work) == [1]
    assert evaluation(tmp_path / "kept")._kept("kind.pickle", work) == [2]
    assert (tmp_path / "kept" / "others" / "kind+1.pickle").is_file()


def test_without_a_directory_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    work = Work()
    assert [evaluation(None)._kept("kind.pickle", work) for _ in range(2)] == [[1], [2]]
    assert not list(tmp_path.iterdir())
