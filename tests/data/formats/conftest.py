import logging

import pytest


@pytest.fixture
def file(tmp_path):
    """Writes text or bytes to a file of the given name and returns its path."""

    def create(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return create


@pytest.fixture
def as_lists():
    """The original items of each user of a log."""

    def convert(log):
        return {
            user: log.item_ids[row].tolist()
            for user, row in zip(log.user_ids.tolist(), log.sequences, strict=True)
        }

    return convert


@pytest.fixture
def fails():
    """Asserts that a call raises one line that holds `parts`, and no whole value."""

    def check(call, *parts):
        with pytest.raises(ValueError) as caught:
            call()
        message = str(caught.value)
        for part in parts:
            assert str(part) in message
        assert len(message) < 1000 and "\n" not in message

    return check


@pytest.fixture
def warnings_of(caplog):
    """Returns what was logged by a call."""

    def collect(call):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "sevo_jax"):
            call()
        return [record.getMessage() for record in caplog.records]

    return collect
