import pytest

from sevo_jax._files import is_empty, locked, replace_text, replacing


def test_a_text_is_replaced_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    replace_text(path, "old")

    def broken(*_):
        raise OSError(28, "the disk is full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError) as error:
        replace_text(path, "new")
    assert error.value.filename == str(path)
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


def test_a_folder_has_one_writer(tmp_path):
    folder = tmp_path / "a" / "b"
    with locked(folder):
        assert is_empty(folder)
        with pytest.raises(FileExistsError, match="b is in use by another run"):
            with locked(folder):
                raise AssertionError
    with locked(folder) as check:
        check()
        (folder / "file").touch()
        assert not is_empty(folder)


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        replace_text(tmp_path / "none" / "file.json", "text")
    assert error.value.filename == str(tmp_path / "none" / "file.json")
