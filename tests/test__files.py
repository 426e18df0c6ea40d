import pytest

from sevo_jax._files import replace_text, replacing


def test_a_text_is_replaced_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    replace_text(path, "old")

    def broken(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError):
        replace_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        assert path.read_bytes() == b"old"
        raise KeyError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_have_files_of_their_own(tmp_path):
    path = tmp_path / "file.txt"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    # Each replaced the file as its block ended, the inner one before.
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]
