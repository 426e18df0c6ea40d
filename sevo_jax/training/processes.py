"""A run of several processes, which share one mesh of devices."""

from __future__ import annotations

import jax


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
    process 0 writes what Orbax does not.

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
      ValueError: if JAX cannot find out what is left out.
      RuntimeError: if JAX is in use already, or the processes do not find together.

    Examples:
      The first of two processes on one machine::

        connect("localhost:12345", 2, 0)
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        heartbeat_timeout_seconds=timeout,
        # How long one that has finished, or failed, waits for the others to do so.
        shutdown_timeout_seconds=timeout,
    )


def is_first() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return jax.process_index() == 0
