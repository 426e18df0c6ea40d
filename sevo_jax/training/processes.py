"""A run of several processes, which share one mesh of devices."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from sevo_jax._messages import listed

_HELLO, _GO = "sevo-jax process", "sevo-jax go"
_SECONDS_TO_MEET = 60


def connect(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = 100,
) -> None:
    """Joins the processes of a run; each calls it before it uses JAX otherwise.

    From then on `jax.devices()` are those of all processes, and every process must do
    the same: the same `Trainer`, the same calls. They need one file system, on which
    process 0 writes what Orbax does not. `Trainer.run` makes sure that they were given
    the same.

    A process that dies, or no longer answers, ends all others with a message and a
    status that is not 0: at once where they wait for it in a collective operation that
    notices (those of CPUs do), and after `timeout` at the latest.

    Args:
      coordinator: address of process 0, `"host:port"`, with a port that is free there.
        This and the next two are found out on clusters that JAX knows (Slurm, Open
        MPI, Cloud TPU, Kubernetes), where they may be left out.
      num_processes: how many processes there are.
      process_id: which of them this is, from 0.
      timeout: seconds without a sign of life after which a process counts as dead.

    Raises:
      ValueError: if the address is none, or JAX cannot find out what is left out.
      OSError: if the port is in use, or the processes do not meet within a minute.
      RuntimeError: if JAX is in use already.

    Examples:
      The first of two processes on one machine::

        connect("localhost:12345", 2, 0)
    """
    if coordinator and num_processes is not None and process_id is not None:
        meet(coordinator, num_processes, process_id, seconds=_SECONDS_TO_MEET)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=timeout,
            # How long one that has finished, or failed, waits for the others to do so.
            shutdown_timeout_seconds=timeout,
        )
    except ValueError as error:
        raise ValueError(
            f"JAX does not find out which processes there are ({error}): give the "
            "address, how many there are, and which this is"
        ) from error


def meet(
    coordinator: str,
    num_processes: int,
    process_id: int,
    *,
    seconds: float,
) -> None:
    """Waits until all processes are there; JAX aborts those whose partners are not.

    Process 0 listens at the address that JAX is to listen at afterwards. Every process
    calls there, process 0 too (the address may lead elsewhere), and it lets all of them
    go on, or says what is wrong.

    Args:
      coordinator: as for `connect`.
      num_processes: likewise.
      process_id: likewise.
      seconds: how long to wait.

    Raises:
      ValueError: if the address is none, there is no such process, or the others were
        started for another number.
      OSError: if the port is in use, or they do not meet in time.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"the address is {coordinator!r:.80}: it must be HOST:PORT")
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"this is process {process_id} of {num_processes}: they count from 0"
        )
    deadline = time.monotonic() + seconds
    address = host.strip("[]"), int(port)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(coordinator)) if not process_id else None
        call = stack.enter_context(_call(address, coordinator, deadline))
        call.sendall(f"{_HELLO} {process_id} of {num_processes}\n".encode())
        # Process 0 may have begun to wait later, and waits as long.
        call.settimeout(seconds + 5)
        answer = ""
        if server is not None:
            # Its own call may be the last of those that wait at its door.
            answer = _answer(server, num_processes, seconds, deadline)
        else:
            with contextlib.suppress(OSError, ValueError):
                answer = call.makefile(encoding="utf-8").readline(1000).strip()
    if not answer.startswith("sevo-jax "):
        raise OSError(f"what answers at {coordinator} is not process 0, or is gone")
    if answer != _GO:
        raise OSError(answer.removeprefix("sevo-jax "))


def _listen(coordinator: str) -> socket.socket:
    port = int(coordinator.rpartition(":")[2])
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise OSError(
            f"process 0 cannot listen at {coordinator} ({reason}): choose another "
            "port, the same for all processes"
        ) from error


def _call(address: tuple[str, int], coordinator: str, deadline: float) -> socket.socket:
    """A connection to process 0, as soon as it listens."""
    while True:
        try:
            return socket.create_connection(address, timeout=5)
        except OSError as error:
            if time.monotonic() > deadline:
                raise OSError(
                    f"process 0 does not answer at {coordinator} "
                    f"({error.strerror or error}): start all processes, with the "
                    "address of the machine of process 0"
                ) from error
        time.sleep(0.2)


def _answer(
    server: socket.socket, num_processes: int, seconds: float, deadline: float
) -> str:
    """Waits for all processes and tells them to go on, or what is wrong.

    Returns:
      What they are told.
    """
    callers: list[socket.socket] = []
    present: set[int] = set()
    verdict = _GO
    with contextlib.ExitStack() as stack:
        while verdict == _GO and len(present) < num_processes:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                caller = stack.enter_context(server.accept()[0])
                caller.settimeout(5)
                greeting = caller.makefile(encoding="utf-8").readline(200).split()
            except TimeoutError:
                if time.monotonic() > deadline:
                    missing = [str(i) for i in range(num_processes) if i not in present]
                    verdict = (
                        f"sevo-jax process {listed(missing)} of {num_processes} did "
                        f"not call in {seconds:.0f} s: start all of them, with the "
                        "same address"
                    )
                continue
            except (OSError, ValueError):
                continue
            if greeting[:-3] != _HELLO.split():
                continue  # Somebody else's call.
            process, total = int(greeting[-3]), int(greeting[-1])
            if total != num_processes:
                verdict = (
                    f"sevo-jax process {process} was started as one of {total}, "
                    f"process 0 as one of {num_processes}"
                )
            elif process in present:
                verdict = f"sevo-jax two processes were started as process {process}"
            callers.append(caller)
            present.add(process)
        for caller in callers:
            with contextlib.suppress(OSError):
                caller.sendall(f"{verdict}\n".encode())
    return verdict


def is_first() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return jax.process_index() == 0


def gather(text: str) -> list[str]:
    """The text that each process gives, by process; all call this together."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([data.size])).ravel()
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [
        row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)
    ]


def on_first(act: Callable[[], object]) -> None:
    """Calls `act` in process 0, and raises in all processes what it raises there.

    Raises:
      OSError: likewise, and so on, in process 0.
      ValueError: likewise; in other processes whatever the error in process 0 is.
    """
    failure: Exception | None = None
    if is_first():
        try:
            act()
        except (OSError, ValueError) as error:
            failure = error
    (message, *_) = gather("" if failure is None else f"process 0: {failure}")
    if failure is not None:
        raise failure
    if message:
        raise ValueError(message)
