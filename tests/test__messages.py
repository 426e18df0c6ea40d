from sevo_jax._messages import listed, named, shown


def test_no_more_than_a_line_is_printed():
    for value in (
        "x" * 10**6,
        b"x" * 10**6,
        ["x"] * 10**4,
        10**4000,
        "\U0010ffff" * 99,
    ):
        assert len(shown(value)) == 60
        assert shown(value).endswith("...")
    assert len(listed(["x" * 10**6] * 1000)) < 600


def test_short_values_are_whole():
    assert shown("it's") == '"it\'s"'
    assert named("it's") == "it's"
    assert named("two\nlines") == r"'two\nlines'"
    assert named("\0") == r"'\x00'"
    assert named(104) == "104"
