"""What a result was measured on and with: processor, threads, device, memory, versions."""

import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lvnar_hf

if TYPE_CHECKING:
    import torch

# What decides how fast products of float32 and of 8 bits are: the widest of each that a processor has is named.
_INSTRUCTIONS = (("avx512f", "avx2"), ("avx512_vnni", "avx_vnni"))


def describe_processor() -> str:
    """The processor's name, as the system gives it, and its vector instructions: "AMD EPYC (avx512f, avx512_vnni)"."""
    cpuinfo = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    for line in cpuinfo.read_text().split("\n") if cpuinfo.exists() else []:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", "").split()
    has = [next((name for name in names if name in flags), None) for names in _INSTRUCTIONS]
    instructions = ", ".join(name for name in has if name is not None)
    processor = fields.get("model name") or platform.processor() or platform.machine()
    return f"{processor} ({instructions})" if instructions else processor


def num_threads() -> int:
    """Torch's number of threads where it is imported; else what it would be, the cores that this process may use."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = [Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list") for number in processors]
    return len({file.read_text() if file.exists() else str(file) for file in siblings})


def may_have_gpu() -> bool:
    """Whether the system shows a device that torch might call "cuda"."""
    return any(any(Path("/dev").glob(pattern)) for pattern in ("nvidia[0-9]*", "kfd", "dxg"))


def describe_machine(device: "torch.device | str") -> dict[str, Any]:
    """Processor, its cores, torch's threads, the machine's memory in GiB, the device and, if it is one, the GPU."""
    gpu: dict[str, Any] = {}
    if str(device).startswith("cuda"):
        import torch

        properties = torch.cuda.get_device_properties(device)
        gpu = {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30, 1)}
    return {
        "processor": describe_processor(),
        "cores": os.cpu_count(),
        "threads": num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "device": str(device),
        **gpu,
    }


def describe_versions() -> dict[str, str]:
    """Of this package, Python, torch and transformers; of the others where they are installed."""
    import torch

    versions = {"lvnar_hf": lvnar_hf.__version__, "python": platform.python_version(), "torch": torch.__version__}
    for name in ("transformers", "ctranslate2", "onnxruntime", "sacrebleu"):
        if importlib.util.find_spec(name) is not None:
            versions[name] = importlib.metadata.version(name)
    return versions
