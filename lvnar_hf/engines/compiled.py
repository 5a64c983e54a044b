"""The model compiled by `torch.compile` for CUDA: the same `generate`.

    from lvnar_hf.engines.compiled import LvnarCompiledModel

    model = LvnarCompiledModel.from_pretrained("model_cards/lvnar-tatoeba-en-de", dtype=torch.bfloat16)
    model.warm_up(batch_sizes=[1, 8])  # compiles now, not in the first call
    translator = pipeline("translation", model=model, tokenizer=AutoTokenizer.from_pretrained(...))

What is unusual: one compilation serves all lengths. Each call is a replay of CUDA graphs, which are captured for each
sequence of shapes, so that lengths and batches are padded to few of them. There is none of it on the CPU, where ONNX
Runtime is faster at every batch size, and needs a third of the memory (docs/EXPERIMENTS.md).
"""

import contextlib
import os
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad

from lvnar_hf.ctc_lvnar import ctc_cell_mask
from lvnar_hf.decoding_options_lvnar import DecodingOptions
from lvnar_hf.engines.base import LvnarEngine
from lvnar_hf.generation_lvnar import LvnarGenerateOutput
from lvnar_hf.inputs_lvnar import check_evaluation_mode
from lvnar_hf.modeling_lvnar import LvnarForConditionalGeneration
from lvnar_hf.refinement_lvnar import EncodedSource, refine

CAPTURE_CALLS = 3  # of a shape: one to warm up, one to capture, one to replay


@dataclass(frozen=True)
class Buckets:
    """The shapes that inputs are padded to; padding changes no token.

    Args:
        length_multiple: source and target lengths become a multiple of it, and at least 2, since the compiler makes
            code of its own for 1.
        pads_batch: batches become a power of 2, by repeating their first sentences.
    """

    length_multiple: int
    pads_batch: bool

    def __post_init__(self) -> None:
        if type(self.length_multiple) is not int or self.length_multiple < 1:
            raise ValueError(f"length_multiple is {self.length_multiple!r}; it must be a whole number of at least 1.")

    def length(self, length: int) -> int:
        """The padded length."""
        return max(2, -(-length // self.length_multiple) * self.length_multiple)

    def batch_size(self, batch_size: int) -> int:
        """The padded batch size."""
        return 1 << (batch_size - 1).bit_length() if self.pads_batch else batch_size


CUDA_BUCKETS = Buckets(length_multiple=8, pads_batch=True)


class LvnarCompiledModel(LvnarEngine):
    """A model of PyTorch whose parts are compiled when they are first needed, or by `warm_up`.

    `generate` has the arguments, the results and the errors of the model itself.

    Args:
        model: on a GPU, in its number type: float32, bfloat16 or float16.
        buckets: what shapes are padded to.

    Raises:
        ValueError: the model is on another device.
    """

    device_types = ("cuda",)
    compiler_options: Mapping[str, Any] = {"mode": "reduce-overhead"}

    def __init__(self, model: LvnarForConditionalGeneration, buckets: Buckets = CUDA_BUCKETS):
        self.check_device(model.device)
        self.model, self.config, self.generation_config = model.eval(), model.config, model.generation_config
        self.calibration, self.device, self.dtype = model.calibration, model.device, model.dtype
        self.buckets = buckets
        self.encode = self._compile(self._encode)
        self._compiled_infer_posterior = self._compile(self._infer_posterior)
        self.predict_length = self._compile(model.predict_length)
        self._compiled_decode = self._compile(model.decode)

    @classmethod
    def check_device(cls, device: str | torch.device) -> None:
        """Raise ValueError for a device that nothing is compiled for, or that is not there."""
        kind = torch.device(device).type
        if kind not in cls.device_types or (kind == "cuda" and not torch.cuda.is_available()):
            raise ValueError(
                f"{cls.__name__} needs a GPU with CUDA; {device} is none here. On the CPU ONNX Runtime is faster: "
                "LvnarOnnxModel, the engines onnx and onnx-int8."
            )

    def _compile(self, method: Callable) -> Callable:
        return torch.compile(_with_own_code(method), dynamic=True, fullgraph=True, **self.compiler_options)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cuda",
        **arguments: Any,
    ) -> "LvnarCompiledModel":
        """From a model folder or a repository of the Hub.

        Args:
            name: folder or Hub id.
            dtype: of the weights: torch.float32, bfloat16 or float16.
            device: where it runs.
            arguments: as in the `from_pretrained` of transformers.
        """
        cls.check_device(device)
        return cls(LvnarForConditionalGeneration.from_pretrained(name, dtype=dtype, **arguments).eval().to(device))

    @torch.no_grad()
    def warm_up(
        self,
        batch_sizes: Sequence[int] = (1, 2),
        lengths: Sequence[tuple[int, int]] = ((7, 11),),
        num_refinement_steps: int = 1,
    ) -> float:
        """Compile, and capture the graphs, for these shapes; seconds that it took.

        Args:
            batch_sizes: sentences.
            lengths: of source and target, tokens; with alignment "ctc", the source gives the decoder its cells.
            num_refinement_steps: how many will be taken, at most.
        """
        start = time.perf_counter()
        for batch_size in sorted({self.buckets.batch_size(size) for size in batch_sizes}):
            for source_length, target_length in lengths:
                for _ in range(CAPTURE_CALLS):
                    self._call_parts(batch_size, source_length, target_length, max(1, num_refinement_steps))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    def _call_parts(self, batch_size: int, source_length: int, target_length: int, num_steps: int) -> None:
        """The parts as `generate` calls them: CUDA replays what comes in the order of a capture, tensors included."""
        ids = torch.full((batch_size, source_length), self.config.eos_token_id, device=self.device)
        targets = ids.new_full((batch_size, target_length), self.config.eos_token_id)
        target_mask = torch.ones_like(targets)
        is_ctc = self.config.alignment == "ctc"

        def translate(latents: torch.Tensor) -> None:
            length_logits = None if is_ctc else self.predict_length(source, latents)
            cells = ctc_cell_mask(source.attention_mask, self.config.upsampling_ratio) if is_ctc else target_mask
            self.decode(source, latents, cells)
            del length_logits  # not before

        with self._compiling():
            source = self.encode(*self._pad_lengths(ids, torch.ones_like(ids)))
            translate(source.prior_means)
            for _ in range(num_steps):
                latents, _ = self.infer_posterior(source, targets, target_mask)
                translate(latents)

    @contextlib.contextmanager
    def _compiling(self) -> Iterator[None]:
        """What has to hold while a part is compiled, and while CUDA graphs are replayed."""
        # Imported here, since it takes a second: the compiler is not needed to import this module.
        from torch.fx.experimental import _config

        shape_config: Any = _config
        torch.compiler.cudagraph_mark_step_begin()
        # Lengths that happen to be equal in the first call must not have to be equal ever after.
        with shape_config.patch(use_duck_shape=False):
            yield

    # Algorithm 1 on padded shapes, and its parts.

    def _refine(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, options: DecodingOptions
    ) -> LvnarGenerateOutput:
        check_evaluation_mode(self.model)
        with self._compiling():
            return refine(self, *self._pad_lengths(input_ids, attention_mask), options, self.buckets.batch_size)

    def _pad_lengths(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask (batch, length) with padding up to the length's bucket."""
        missing = self.buckets.length(ids.shape[1]) - ids.shape[1]
        return pad(ids, (0, missing), value=self.config.pad_token_id), pad(mask, (0, missing))

    def _encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> EncodedSource:
        """The model's, laid out as `select` leaves it when sentences leave the batch: else it compiles anew."""
        source = self.model.encode(input_ids, attention_mask)
        return source.select(torch.arange(input_ids.shape[0], device=input_ids.device))

    def _infer_posterior(
        self, source: EncodedSource, target_ids: torch.Tensor, target_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The model's, the means laid out as those of the prior."""
        means, stds = self.model.infer_posterior(source, target_ids, target_mask)
        return means.contiguous(), stds

    def infer_posterior(
        self, source: EncodedSource, target_ids: torch.Tensor, target_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._compiled_infer_posterior(source, *self._pad_lengths(target_ids, target_mask))

    def decode(self, source: EncodedSource, latents: torch.Tensor, target_mask: torch.Tensor) -> torch.Tensor:
        length = target_mask.shape[1]
        target_mask = pad(target_mask, (0, self.buckets.length(length) - length))
        return self._compiled_decode(source, latents, target_mask)[:, :length]

    def eval(self) -> "LvnarCompiledModel":
        self.model.eval()
        return self


def _with_own_code(method: Callable) -> Callable:
    """The same method as an object that the compiler has not seen: of one code it keeps eight graphs, and no more."""
    assert isinstance(method, types.MethodType)
    function: Any = method.__func__
    code = function.__code__.replace(co_name=f"{function.__name__}_compiled")
    own = types.FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)
    return types.MethodType(own, method.__self__)
