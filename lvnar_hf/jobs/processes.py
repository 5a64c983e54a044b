"""The processes of a command that translates much: how many, on which devices, and how they end."""

import multiprocessing
import os

from lvnar_hf.jobs.environment import may_have_gpu, num_threads

EXECUTORS = ("local", "slurm", "ray")


def check_executor(name: str) -> bool:
    """Whether it is this machine's.

    Raises:
        ValueError: there is no such executor.
    """
    if name not in EXECUTORS:
        raise ValueError(f"executor is {name!r}; it must be one of {', '.join(EXECUTORS)}.")
    return name == "local"


def end_with_parent() -> None:
    """Wait for the process that has started this one, and end this one; for a thread."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def worker_devices(device: str | None, num_workers: int | None, num_on_cpu: int | None = None) -> list[str]:
    """The device of each process: the CPU of all, or a GPU of each.

    Args:
        device: by default "cuda" where there is a GPU, which is all of them, else "cpu".
        num_workers: by default one a GPU; on the CPU `num_on_cpu`, or one a core.

    Raises:
        ValueError: there is no such device, there cannot be so many processes, or a launcher has started several.
    """
    if (num_launched := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ValueError(f"A launcher has started {num_launched} processes: start one, which can start others.")
    if device is None:
        device = "cpu"
        if may_have_gpu():
            import torch

            device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.partition(":")[0] == "cpu":
        devices = ["cpu"] * (num_on_cpu or num_threads())
    else:
        import torch

        try:
            torch.empty(0, device=device)
        except (AssertionError, ImportError, NotImplementedError, RuntimeError) as error:  # each device has its own
            reason = str(error).partition("\n")[0]
            raise ValueError(f"--device is {device!r}, which torch does not find here: {reason}") from error
        devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if device == "cuda" else [device]
    number = len(devices) if num_workers is None else num_workers
    if number < 1 or (number > len(devices) and devices[0] != "cpu"):
        raise ValueError(f"num_workers is {number}; it must be at least 1, and one a GPU at most: {devices}.")
    return (devices * number)[:number]
