"""Who listens hears of every part; who does not, hears nothing."""

from pathlib import Path
from typing import Any

from cache.progress import listening, tracked
from cache.store import TokenStore


def test_a_listener_hears_of_every_item_once(filled: TokenStore) -> None:
    heard: list[tuple[str, int, int]] = []
    with listening(lambda *told: heard.append(told)):
        assert list(tracked(["a", "b"], "letters")) == ["a", "b"]
        filled.verify()
    assert heard == [("letters", 1, 2), ("letters", 2, 2), ("parts verified", 1, 2), ("parts verified", 2, 2)]
    filled.verify()
    assert len(heard) == 4


def test_commands_print_lines_on_standard_error(
    filled: TokenStore, monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr("pipelines.commands.options.LINE_S", 0.0)
    from pipelines.commands.caches import verify

    verify(str(filled.path), clean=False, repair=False, as_json=False)
    out, err = capsys.readouterr()
    assert "2 parts, 5 samples" in out
    assert "verify: 1/2 parts verified, about" in err
