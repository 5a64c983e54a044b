"""What the benchmark's command is told of its timing."""

from dataclasses import dataclass, field
from typing import Any

DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class TimingArguments:
    """What is timed, and how often."""

    systems: list[str] = field(
        default_factory=list, metadata={"help": "parts of names: only the systems with one of them; by default, all"}
    )
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8, 32, 128], metadata={"help": "sentences at once"})
    num_timed_sentences: int | None = field(
        default=None,
        metadata={"help": "at each batch size, at least one batch; by default 10 with random weights, 64 with trained"},
    )
    num_repeats: int = field(default=3, metadata={"help": "times that each system translates them, in turns"})
    max_minutes: float = field(
        default=11.5,
        metadata={"help": "of one mode's rounds: after two repeats another is begun only if it would end by then"},
    )
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads; by default, torch's"})
    device: str | None = field(default=None, metadata={"help": "cpu or cuda; by default cuda if there is one"})
    dtype: str = field(
        default="float32", metadata={"help": "of this model and transformers: float32, bfloat16 or float16"}
    )

    def __post_init__(self) -> None:
        import torch

        if self.num_repeats < 2:
            raise ValueError(f"num_repeats is {self.num_repeats}; a spread needs at least 2.")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"batch_sizes are {self.batch_sizes}; each must be at least 1, and there must be one.")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; it must be one of {', '.join(DTYPES)}.")
        self.batch_sizes = sorted(set(self.batch_sizes))
        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.num_threads = self.num_threads or torch.get_num_threads()

    def common(self) -> dict[str, Any]:
        """What all systems share."""
        return {"device": self.device, "dtype": self.dtype, "num_threads": self.num_threads}
