"""Odd and damaged texts: cut, cleaned by the tokenizer, or with a reason."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from extract.config import TextSettings
from extract.encoders.text import CHARACTERS_PER_TOKEN, TextEncoder
from extract.encoders.tokenizer import train_tokenizer
from extract.values import UnreadableValue

Read = Callable[[str, str], Any]
SETTINGS = TextSettings(
    **{"type": "bert", "weights": "scratch", "revision": None, "max_tokens": 12, "vocabulary": 60},
    **{"width": 8, "layers": 1, "heads": 2, "dropout": 0.0},
)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(SETTINGS, train_tokenizer(["no acute opacity", "clear lungs"], 60, 12))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty text"),
        (b" \n\t", "empty text"),
        (b"\xef\xbb\xbf \r\n", "empty text"),
        (b"\0\0\0", "empty text"),
        ("\u00a0\u2003".encode(), "empty text"),
        (b"clear \xff\xfe lungs", "not valid UTF-8"),
        (b"cut in a letter \xc3", "not valid UTF-8"),
        ("clear lungs".encode("utf-16"), "not valid UTF-8"),
        ("Ödem".encode("latin-1"), "not valid UTF-8"),
        (b"half a pair \xed\xa0\x80", "not valid UTF-8"),
    ],
)
def test_text_files_that_cannot_be_used(content: bytes, reason: str, tmp_path: Path, read_file: Read) -> None:
    (tmp_path / "note.txt").write_bytes(content)
    with pytest.raises(UnreadableValue, match=reason):
        read_file("text", "note.txt")


def test_text_files_are_utf8_with_or_without_a_mark(tmp_path: Path, read_file: Read) -> None:
    (tmp_path / "marked.txt").write_bytes("\ufeffÖdem, “none”\n".encode())
    (tmp_path / "plain.txt").write_bytes("Ödem, “none”\n".encode())
    assert read_file("text", "marked.txt") == read_file("text", "plain.txt") == "Ödem, “none”\n"
    (tmp_path / "folder.txt").mkdir()
    for name in ("absent.txt", "folder.txt"):
        with pytest.raises(UnreadableValue, match="file not found"):
            read_file("text", name)
    with pytest.raises(UnreadableValue, match="leaves the table's folder"):
        read_file("text", "../note.txt")


def test_a_null_byte_inside_a_text_changes_no_token(
    tmp_path: Path, read_file: Read, encoder: TextEncoder, tokens_of: Callable[..., np.ndarray]
) -> None:
    (tmp_path / "null.txt").write_bytes(b"clear\0 lungs\0")
    assert np.array_equal(tokens_of(encoder, read_file("text", "null.txt")), tokens_of(encoder, "clear lungs"))


@pytest.mark.parametrize("text", ["", " \n", "\0", "\u200b\u200d", "\x01\x02"])
def test_text_without_a_token_has_a_reason(text: str, encoder: TextEncoder) -> None:
    with pytest.raises(UnreadableValue, match="no token"):
        encoder.preprocess(text)


@pytest.mark.parametrize("text", ["肺は明らか", "👩‍⚕️ ok", "شفاف", "a" * 5000, "e\u0301" * 3])
def test_unknown_scripts_have_tokens(text: str, encoder: TextEncoder, tokens_of: Callable[..., np.ndarray]) -> None:
    assert 3 <= len(tokens_of(encoder, text)) <= SETTINGS.max_tokens


def test_a_text_of_100_000_words_is_cut_before_it_is_tokenized(
    encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    long, seen = "clear lungs no " * 33_334, []
    expected = encoder.tokenizer.encode(long).ids
    whole = encoder.tokenizer

    def encode(text: str) -> Any:
        seen.append(len(text))
        return whole.encode(text)

    monkeypatch.setattr(encoder, "tokenizer", SimpleNamespace(encode=encode))
    assert encoder.preprocess(long)["ids"].tolist() == expected
    assert len(encoder.token_spans(long)) == SETTINGS.max_tokens
    assert seen == [CHARACTERS_PER_TOKEN * SETTINGS.max_tokens] * 2
