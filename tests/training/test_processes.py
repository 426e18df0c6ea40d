"""One run in several processes, on virtual devices, with the collectives of CPUs."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

import sevo_jax
from sevo_jax.cli import main
from sevo_jax.data import leave_one_out
from sevo_jax.data.readers import read
from sevo_jax.data.writers import write
from sevo_jax.models import MFBPRConfig
from sevo_jax.training import GraphConfig, OptimizerConfig, Recipe, Trainer, processes
from sevo_jax.training.mesh import make_mesh
from sevo_jax.training.processes import meet
from sevo_jax.training.run_log import RunLog

# Seconds without a sign of life. Ten are too few where many tests share a processor.
TIMEOUT = 30

# How much a loss may differ from that of one device. Every process draws the same
# batches, but the sums over a batch are taken in parts, in float32; the steps of four
# epochs carry that on.
TOLERANCE = 2e-5

CHILD = """
import json, math, os, signal, sys
import jax
from sevo_jax.training.processes import connect

coordinator, processes, timeout, mesh, recipe, data, output, fails = map(
    json.loads, sys.argv[1:-1]
)
process = int(sys.argv[-1])
connect(coordinator, processes, process, timeout=timeout)
jax.config.update("jax_num_cpu_devices", math.prod(mesh) // processes)

from sevo_jax.data import leave_one_out
from sevo_jax.data.readers import read
from sevo_jax.training import Recipe, Trainer
from sevo_jax.training.run_log import RunLog
from sevo_jax.training.mesh import make_mesh

told = RunLog.train

def failing(self, epoch, loss, seconds, parts):
    told(self, epoch, loss, seconds, parts)
    if fails and fails[:2] == [process, epoch]:
        print("fails", file=sys.stderr, flush=True)
        os.kill(os.getpid(), fails[2])

RunLog.train = failing
split = leave_one_out(read(data))
trainer = Trainer(Recipe.from_dict(recipe), split, mesh=make_mesh(*mesh))
result = trainer.run(seed=3, output=output)
print("result", json.dumps([result.losses, result.valid, result.test]))
"""


@pytest.fixture(scope="module")
def recipe():
    """Trains in a second, so that starting the processes is most of the work."""
    return Recipe(
        model="mf-bpr",
        architecture=MFBPRConfig(width=8),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        graph=GraphConfig("user-item", max_len=12),
        batch_size=64,
        epochs=4,
        eval_every=2,
    )


@pytest.fixture(scope="module")
def data(ring_log, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "ring.txt"
    # Users that do not divide evenly among devices.
    write(ring_log(num_users=39), path)
    return path


@pytest.fixture(scope="module")
def trainer(recipe, data):
    return Trainer(recipe, leave_one_out(read(data)))


@pytest.fixture(scope="module")
def alone(trainer):
    """What one process and one device give."""
    return trainer.run(seed=3, progress=False)


def coordinator() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def start(*args: str) -> subprocess.Popen:
    root = str(Path(sevo_jax.__file__).parents[1])
    paths = [root, os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, *args],
        env={
            **{k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"},
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(children: list[subprocess.Popen], seconds: float = 300):
    """Status, output and errors of each; none is left behind."""
    try:
        outputs = [child.communicate(timeout=seconds) for child in children]
    finally:
        for child in children:
            child.kill()
    return [
        (child.returncode, *output)
        for child, output in zip(children, outputs, strict=True)
    ]


def train(processes, mesh, recipe, data, output, *, fails=None):
    """Starts the processes; `fails`: which does, after which epoch, by what signal."""
    arguments = (
        coordinator(),
        processes,
        TIMEOUT,
        mesh,
        recipe.to_dict(),
        str(data),
        str(output),
        fails,
    )
    common = [json.dumps(argument) for argument in arguments]
    return [start("-c", CHILD, *common, str(i)) for i in range(processes)]


def assert_same(losses, valid, test, alone):
    np.testing.assert_allclose(losses, alone.losses, rtol=TOLERANCE)
    # Ranks are whole numbers, and no two scores are near enough to change places.
    assert (valid, test) == (alone.valid, alone.test)


def test_four_processes_train_as_one_does(recipe, data, alone, tmp_path):
    output = tmp_path / "run"
    done = finish(train(4, (2, 1, 2), recipe, data, output))
    results = []
    for status, text, errors in done:
        assert status == 0, errors
        results.append(text.partition("result")[2])
    assert len(set(results)) == 1
    losses, valid, test = json.loads(results[0])
    assert_same(losses, valid, test, alone)
    # The first process tells, and nobody else.
    assert ["epoch 4/4" in errors for _, _, errors in done] == [True] + 3 * [False]
    lines = (output / "metrics.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    assert (kinds.count("train"), kinds.count("evaluation")) == (4, 3)
    assert json.loads((output / "result.json").read_text())["losses"] == losses


@pytest.mark.parametrize("failure", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("victim", [0, 1])
def test_other_ends_when_a_process_fails_and_one_goes_on(
    victim, failure, recipe, data, trainer, alone, tmp_path
):
    output = tmp_path / "run"
    children = train(2, (1, 1, 2), recipe, data, output, fails=[victim, 2, failure])
    try:
        for line in children[victim].stderr:
            if "fails" in line:
                break
        began = time.monotonic()
        [(status, _, errors)] = finish([children[1 - victim]], seconds=3 * TIMEOUT)
        assert time.monotonic() - began < 2 * TIMEOUT
    finally:
        children[victim].kill()
        children[victim].communicate()
    assert status != 0
    assert "Gloo" in errors or "another task died" in errors, errors
    assert not (output / "result.json").exists()
    # From the checkpoint of two processes, one process trains the rest.
    resumed = trainer.run(seed=3, output=output, resume=True, progress=False)
    assert_same(resumed.losses, resumed.valid, resumed.test, alone)


def test_command_line_goes_on_in_more_processes(
    recipe, data, tmp_path, capsys, monkeypatch
):
    command = [
        *("train", "--model", recipe.model, "--data", str(data), "--epochs", "4"),
        *("--eval-every", "2", "--batch-size", "64", "--width", "8"),
    ]
    assert main([*command, "--output", str(tmp_path / "alone")]) == 0
    expected = capsys.readouterr().out

    def stopped(self, epoch, loss, seconds, parts):
        if epoch == 2:
            raise KeyboardInterrupt

    output = str(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "train", stopped)
        assert main([*command, "--output", output]) == 130
    command += ["--output", output, "--resume", "--mesh", "rows=2", "--distributed"]
    address = coordinator()
    script = "import sys; from sevo_jax.cli import main; sys.exit(main())"
    done = finish(
        [start("-c", script, *command, address, "2", str(i)) for i in range(2)]
    )
    for status, _, errors in done:
        assert status == 0, errors
    assert done[0][1].endswith(expected)
    assert "protocol" not in done[1][1]
    losses = [
        json.loads((tmp_path / name / "result.json").read_text())["losses"]
        for name in ("alone", "run")
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=TOLERANCE)


def test_processes_that_disagree_end_with_one_line(recipe, data, ring_log, tmp_path):
    """Each kind of difference, and then the epochs, of which one would wait forever."""
    other = str(tmp_path / "other.txt")
    write(ring_log(num_users=41), other)
    command = [
        *("-m", "sevo_jax", "train", "--model", recipe.model, "--data", str(data)),
        *("--mesh", "data=2", "--output", str(tmp_path / "run"), "--distributed"),
    ]
    for options, names in [
        (
            ["--seed", "1", "--learning-rate", "0.5"],
            ["seed is 0 in process 0 and 1 in"],
        ),
        (["--epochs", "7", "--data", other], ["recipe.epochs", "dataset.num_users"]),
    ]:
        address = coordinator()
        done = finish(
            [
                start(*command, address, "2", "0"),
                start(*command, address, "2", "1", *options),
            ],
            seconds=120,
        )
        for status, _, errors in done:
            assert status == 2
            (line,) = errors.splitlines()
            assert line.startswith(
                "sevo-jax: error: the processes were given different"
            )
            assert all(name in line for name in names)
        assert not (tmp_path / "run").exists()


def together(*calls, seconds=3.0):
    """What `meet` comes to in processes of these arguments: None, or the message."""

    def one(call):
        try:
            meet(*call, seconds=seconds)
        except (OSError, ValueError) as error:
            return str(error)

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(one, calls))


def test_processes_meet_in_any_order():
    address = coordinator()
    assert together(*((address, 3, i) for i in (2, 0, 1)), seconds=60) == [None] * 3


def test_processes_that_do_not_meet_are_told_why():
    address = coordinator()
    messages = together((address, 3, 0), (address, 3, 2))
    assert messages == 2 * [
        "process 1 of 3 did not call in 3 s: start all of them, with the same address"
    ]
    messages = together((address, 3, 0), (address, 3, 1), (address, 3, 1))
    assert messages == 3 * ["two processes were started as process 1"]
    messages = together((address, 2, 0), (address, 3, 1))
    assert messages == 2 * ["process 1 was started as one of 3, process 0 as one of 2"]


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ([(2, 0), (3, 1)], "process 1 was started as one of 3, process 0 as one of 2"),
        ([(3, 0), (3, 1), (3, 1)], "two processes were started as process 1"),
    ],
)
def test_process_0_is_told_why_when_it_calls_last(calls, message, monkeypatch):
    listen = processes._listen

    def slow(coordinator):
        server = listen(coordinator)
        time.sleep(1.0)  # The others call every 0.2 s.
        return server

    monkeypatch.setattr(processes, "_listen", slow)
    address = coordinator()
    messages = together(*((address, *call) for call in calls))
    assert messages == len(calls) * [message]


def test_other_callers_do_not_disturb_the_meeting():
    address = coordinator()
    host, port = address.split(":")

    def knock():
        for greeting in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff\n"):
            with socket.create_connection((host, int(port)), timeout=10) as call:
                call.sendall(greeting)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(together, (address, 2, 0), seconds=60)
        time.sleep(0.5)
        pool.submit(knock).result()
        assert together((address, 2, 1), seconds=60) == [None]
        assert first.result() == [None]


@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize("host", ["no-such-host.invalid", "localhost"])
def test_a_host_that_does_not_answer_is_one_line(host, process, monkeypatch, capsys):
    monkeypatch.setattr(processes, "_SECONDS_TO_MEET", 1)
    address = f"{host}:{coordinator().split(':')[1]}"
    began = time.monotonic()
    assert main(["train", "--distributed", address, "2", str(process)]) == 2
    assert time.monotonic() - began < 30
    (line,) = capsys.readouterr().err.splitlines()
    if (host, process) == ("localhost", 0):
        assert "process 1 of 2 did not call in 1 s" in line
    else:
        assert f"process 0 does not answer at {address}" in line


def test_a_port_in_use_is_one_line(capsys):
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
        assert main(["train", "--distributed", address, "2", "0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot listen at {address} (Address already in use)" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["localhost", "2", "0"], "the address is 'localhost': it must be HOST:PORT"),
        (["localhost:x", "2", "0"], "must be HOST:PORT"),
        (["localhost:70000", "2", "0"], "must be HOST:PORT"),
        (["localhost:1234", "2", "2"], "process 2 of 2: they count from 0"),
    ],
)
def test_bad_addresses_are_refused(arguments, message, capsys):
    assert main(["train", "--distributed", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_mesh_of_a_part_of_the_devices_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="the 2 processes have 8 devices"):
        make_mesh(2, 2)
