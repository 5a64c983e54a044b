"""Two operators of training that are slow on a CPU, done otherwise: dropout, and attention to few keys.

What is unusual: the model does not know. A mode of torch's takes the calls of `dropout` and
`scaled_dot_product_attention` in whatever model is trained, a teacher of transformers included, while a training step
runs; evaluation, other devices and what the mode does not know are left alone.

Random numbers come from torch's global generator, as those of the operators themselves: a resumed run ends as one that
was not stopped, though not as a run without this.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# With more keys than these, the scores take more time than they save.
MAX_KEYS = 128
BYTE_VALUES = 256


def byte_dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """Dropout whose probability is p in 256ths, from one random byte a number: eight of a 64-bit random number.

    Args: those of `torch.nn.functional.dropout`; `inplace` changes nothing.
    """
    num_dropped = min(round(p * BYTE_VALUES), BYTE_VALUES - 1)
    if not training or num_dropped == 0:
        return input
    size = input.numel()
    numbers = torch.empty(-(-size // 8), dtype=torch.int64).random_(-(2**63), None)
    keep = numbers.view(torch.uint8)[:size].view(input.shape) >= num_dropped
    # The scale is a Python number: rounded to 16 bits, it would change the mean.
    return input * keep.to(input.dtype) * (BYTE_VALUES / (BYTE_VALUES - num_dropped))


def plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention as two products and a softmax: its backward pass is many times as fast as flash attention's here.

    Args: those of `torch.nn.functional.scaled_dot_product_attention`, (batch, heads, length, head_dim); a mask of
        True at the keys that are seen, or of numbers to be added.
    """
    scores = (query * (scale or 1 / math.sqrt(query.shape[-1]))) @ key.transpose(-1, -2)
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, float("-inf"))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = scores.softmax(-1)
    return (byte_dropout(weights, dropout_p) if dropout_p else weights) @ value


class FastCpuTraining(TorchFunctionMode):
    """Within it, dropout draws bytes, and attention to at most `MAX_KEYS` keys is plain, for tensors on the CPU."""

    def __torch_function__(
        self, function: Callable, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is functional.dropout and args[0].device.type == "cpu":
            function = byte_dropout
        elif function is functional.scaled_dot_product_attention and not kwargs.get("enable_gqa"):
            query, key = args[:2]
            if query.device.type == "cpu" and key.shape[-2] <= MAX_KEYS:
                function = plain_attention
        return function(*args, **kwargs)
