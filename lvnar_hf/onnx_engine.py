"""The model in ONNX Runtime: the same `generate`, from one graph and without the PyTorch weights.

    from lvnar_hf import LvnarTokenizer
    from lvnar_hf.onnx_engine import LvnarOnnxModel

    model = LvnarOnnxModel.from_pretrained("model_cards/lvnar-tatoeba-en-de", precision="int8")
    translator = pipeline("translation", model=model, tokenizer=AutoTokenizer.from_pretrained(...))

The graph stands beside the weights, as `onnx/model.onnx` or `onnx/model_int8.onnx`; `training/export.py` writes both.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig
from transformers.utils import cached_file

from .configuration_lvnar import LvnarConfig
from .generation_lvnar import DecodingOptions, LvnarGenerateOutput, LvnarGenerationMixin
from .modeling_lvnar import LvnarForConditionalGeneration
from .onnx_export import FILES


class LvnarOnnxModel(LvnarGenerationMixin):
    """A model that translates on the CPU by ONNX Runtime.

    `generate` has the arguments, the tokens and the errors of the PyTorch model. With `return_dict_in_generate=True` it
    gives `sequences` and `num_steps_taken`; what the translation was before the last step does not leave the graph, and
    `output_scores=True` is refused.

    Args:
        config: of the model.
        generation_config: its decoding defaults.
        file: the graph.
        num_threads: of one call; by default torch's.

    Raises:
        ImportError: onnxruntime is missing.
        ValueError: the file is no graph that this version of ONNX Runtime takes, or is of something else.
    """

    main_input_name = "input_ids"
    training = False
    device = torch.device("cpu")
    dtype = torch.float32
    check_source = LvnarForConditionalGeneration.check_source

    def __init__(
        self, config: LvnarConfig, generation_config: GenerationConfig, file: Path, num_threads: int | None = None
    ):
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError("This engine is ONNX Runtime: pip install onnxruntime") from error
        self.config, self.generation_config = config, generation_config
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads or torch.get_num_threads()
        options.log_severity_level = 3  # errors; it would warn of weights that its own optimiser has made superfluous
        try:
            self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of classes that onnxruntime does not name in public
            raise ValueError(f"ONNX Runtime {onnxruntime.__version__} cannot load {file}: {error}") from error
        inputs = [value.name for value in self.session.get_inputs()]
        if sorted(inputs) != sorted(_INPUTS):
            raise ValueError(
                f"{file} has the inputs {', '.join(inputs)}; a graph of this model has {', '.join(_INPUTS)}."
            )

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike, precision: str = "float32", num_threads: int | None = None, **where: Any
    ) -> "LvnarOnnxModel":
        """From a model folder or a repository of the Hub.

        Args:
            name: folder or Hub id.
            precision: "float32" or "int8".
            num_threads: of one call; by default torch's.
            where: `revision`, `cache_dir`, `token`, `local_files_only`, as in transformers.

        Raises:
            ValueError: for another precision, and what the class itself refuses.
            FileNotFoundError: the repository has no graph; says how to make it.
        """
        if precision not in FILES:
            raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(FILES)}.")
        folder, _, file = FILES[precision].rpartition("/")
        found = cached_file(str(name), file, subfolder=folder, _raise_exceptions_for_missing_entries=False, **where)
        if found is None:
            raise FileNotFoundError(
                f"{name} has no {FILES[precision]}. Make it: python training/export.py --model {name}"
            )
        config = LvnarConfig.from_pretrained(name, **where)
        generation_config = GenerationConfig.from_pretrained(name, **where)
        return cls(config, generation_config, Path(found), num_threads)

    def _refine(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, options: DecodingOptions
    ) -> LvnarGenerateOutput:
        if options.output_scores:
            raise ValueError("output_scores=True needs the PyTorch model: the graph computes no probabilities.")
        limit = self.config.max_position_embeddings
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "num_refinement_steps": torch.tensor(options.num_refinement_steps),
            "max_length": torch.tensor(min(options.max_length or limit, limit)),
        }
        outputs = self.session.run(list(_OUTPUTS), {name: tensor.cpu().numpy() for name, tensor in inputs.items()})
        sequences, num_steps_taken = map(torch.from_numpy, outputs)
        return LvnarGenerateOutput(sequences=sequences, num_steps_taken=num_steps_taken)

    # What a pipeline and a Trainer ask a model for.

    def modules(self) -> Iterator[nn.Module]:
        """None: there are no weights of PyTorch."""
        return iter(())

    def eval(self) -> "LvnarOnnxModel":
        return self

    def to(self, device: Any = None, **kwargs: Any) -> "LvnarOnnxModel":
        """Itself, on the CPU.

        Raises:
            ValueError: for another device.
        """
        if device is not None and torch.device(device).type != "cpu":
            raise ValueError(f"LvnarOnnxModel runs on the CPU, not on {device}.")
        return self

    def can_generate(self) -> bool:
        return True


_INPUTS = ("input_ids", "attention_mask", "num_refinement_steps", "max_length")
_OUTPUTS = ("sequences", "num_steps_taken")
