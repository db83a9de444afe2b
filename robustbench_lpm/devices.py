"""Devices: which one "auto" is, and how much memory one has free. Imports torch only when it is asked."""

from __future__ import annotations

from robustbench_lpm.errors import LpmbenchError

AUTO = "auto"


def resolve_device(name: str) -> str:
    """The device of this name; "auto" is a CUDA GPU where there is one, else the CPU.

    Apple's MPS has no float64, in which distances are measured: "auto" never takes it.
    Raises LpmbenchError for a device that is not there.
    """
    import torch

    if name == AUTO:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise LpmbenchError(f"Device '{name}' is not available: {str(error).splitlines()[0]}") from None
    return name


def goes_unnamed(device: str) -> bool:
    """Whether a stored command leaves a device out: the CPU, on a machine where "auto" finds nothing else."""
    return device == "cpu" == resolve_device(AUTO)


def free_memory(device: str) -> int:
    """Bytes of a CUDA GPU that can be allocated: free ones, and those that torch keeps for reuse."""
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
