"""The model in ONNX Runtime: the same `generate`, from one graph and without the PyTorch weights.

    from lvnar_hf import LvnarTokenizer
    from lvnar_hf.engines.onnx import LvnarOnnxModel

    model = LvnarOnnxModel.from_pretrained("model_cards/lvnar-tatoeba-en-de", precision="int8")
    translator = pipeline("translation", model=model, tokenizer=AutoTokenizer.from_pretrained(...))

The graph stands beside the weights, as `onnx/model.onnx` or `onnx/model_int8.onnx`; `lvnar export` writes both.
With `shortlist=True` the vocabulary is cut for each sentence, see `lvnar_hf.engines.shortlist`.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig
from transformers.utils import cached_file

from lvnar_hf.configuration_lvnar import LvnarConfig
from lvnar_hf.engines.base import LvnarEngine
from lvnar_hf.engines.onnx_export import FILES, GRAPH_VERSION, VERSION_KEY
from lvnar_hf.engines.shortlist import Shortlist
from lvnar_hf.files.fingerprints import KEY as FINGERPRINT
from lvnar_hf.files.fingerprints import StaleError, refuse_stale
from lvnar_hf.generation_lvnar import GENERATION_DEFAULTS, DecodingOptions, LvnarGenerateOutput
from lvnar_hf.refinement_lvnar import MAX_STEPS, NOT_FINITE, parts_by_length
from lvnar_hf.soundness_lvnar import check_generation_fields

# Positions, padding included, of the parts that a batch is translated in: source tokens, or the cells of alignment
# "ctc". In larger parts nothing is faster, and what passes between the operations no longer fits the processor's
# cache: the logits alone are 4 bytes for each token of the vocabulary and each position.
MAX_PART_POSITIONS = 512


@dataclass
class LvnarOnnxGenerateOutput(LvnarGenerateOutput):
    """What this engine's `generate` returns with `return_dict_in_generate=True`.

    Args:
        num_positions: (2,) over all passes: positions of the decoder, and those of them for which the whole vocabulary
            was computed; without a shortlist, all.
    """

    num_positions: torch.Tensor | None = None


class LvnarOnnxModel(LvnarEngine):
    """A model that translates on the CPU by ONNX Runtime.

    `generate` has the arguments and the errors of the PyTorch model, and in float32 its tokens. In int8 they depend on
    the batch too: numbers are rounded by the largest of all its sentences. With `return_dict_in_generate=True` it
    gives an `LvnarOnnxGenerateOutput` with `sequences` and `num_steps_taken`; what the translation was before the last
    step does not leave the graph, and `output_scores=True` and `output_confidences=True` are refused. Large batches are
    translated in parts, sorted by length.

    Args:
        config: of the model.
        generation_config: its decoding defaults.
        file: the graph.
        num_threads: of one call; by default torch's.
        shortlist: tokens to try before the whole vocabulary; a token may then be another one, see
            `lvnar_hf.engines.shortlist`.

    Raises:
        ImportError: onnxruntime is missing.
        StaleError: the graph was made by another version of this package, with other checks.
        ValueError: the file is no graph that this version of ONNX Runtime takes, or is of something else.
    """

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(
        self,
        config: LvnarConfig,
        generation_config: GenerationConfig,
        file: Path,
        num_threads: int | None = None,
        shortlist: Shortlist | None = None,
    ):
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError("This engine is ONNX Runtime: pip install onnxruntime") from error
        self.config, self.generation_config, self.shortlist = config, generation_config, shortlist
        self.file, self.num_threads = file, num_threads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads or torch.get_num_threads()
        options.log_severity_level = 3  # errors; it would warn of weights that its own optimiser has made superfluous
        try:
            self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of classes that onnxruntime does not name in public
            raise ValueError(f"ONNX Runtime {onnxruntime.__version__} cannot load {file}: {error}") from error
        if (version := self._metadata.get(VERSION_KEY)) != GRAPH_VERSION:
            raise StaleError(
                f"{file} is a graph of version {version}, and this package has the checks of version {GRAPH_VERSION}. "
                "Make it again: lvnar export --model FOLDER --overwrite"
            )
        sides = (("inputs", self.session.get_inputs(), _INPUTS), ("outputs", self.session.get_outputs(), _OUTPUTS))
        for side, values, expected in sides:
            names = [value.name for value in values]
            if sorted(names) != sorted(expected):
                raise ValueError(
                    f"{file} has the {side} {', '.join(names)}; a graph of this version has {', '.join(expected)}. "
                    "Make it again: lvnar export --model FOLDER --overwrite"
                )

    @property
    def _metadata(self) -> dict[str, str]:
        return self.session.get_modelmeta().custom_metadata_map

    def __reduce__(self) -> tuple[object, ...]:
        """A copy, or what is pickled, opens the graph's file again."""
        arguments = (self.config, self.generation_config, self.file, self.num_threads, self.shortlist)
        return type(self), arguments

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike,
        precision: str = "float32",
        num_threads: int | None = None,
        shortlist: bool = False,
        **where: object,
    ) -> "LvnarOnnxModel":
        """From a model folder or a repository of the Hub.

        Args:
            name: folder or Hub id.
            precision: "float32" or "int8".
            num_threads: of one call; by default torch's.
            shortlist: use the repository's shortlist.
            where: `revision`, `cache_dir`, `token`, `local_files_only`, as in transformers.

        Raises:
            StaleError: the graph or the shortlist was made from other weights than those that are in the folder, or the
                graph by another version of this package.
            ValueError: for another precision, a shortlist of another model, and what the class itself refuses.
            FileNotFoundError: the repository has no graph, or no shortlist; says how to make it.
        """
        if precision not in FILES:
            raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(FILES)}.")
        folder, _, file = FILES[precision].rpartition("/")
        found = cached_file(str(name), file, subfolder=folder, _raise_exceptions_for_missing_entries=False, **where)
        if found is None:
            raise FileNotFoundError(f"{name} has no {FILES[precision]}. Make it: lvnar export --model {name}")
        config = LvnarConfig.from_pretrained(name, **where)
        file = cached_file(str(name), "generation_config.json", _raise_exceptions_for_missing_entries=False, **where)
        if file is not None:
            check_generation_fields(file, GENERATION_DEFAULTS["ctc"])
        generation_config = GenerationConfig.from_pretrained(name, **where)
        tokens = Shortlist.from_pretrained(name, config, **where) if shortlist else None
        engine = cls(config, generation_config, Path(found), num_threads, tokens)
        refuse_stale(found, engine._metadata.get(FINGERPRINT), name, f"lvnar export --model {name} --overwrite")
        return engine

    def _refine(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, options: DecodingOptions
    ) -> LvnarOnnxGenerateOutput:
        for name in ("output_scores", "output_confidences"):
            if getattr(options, name):
                raise ValueError(f"{name}=True needs the PyTorch model: the graph of ONNX computes no probabilities.")
        input_ids, attention_mask = input_ids.cpu().long(), attention_mask.cpu()
        order, sizes = parts_by_length(self.config, attention_mask, MAX_PART_POSITIONS)
        outputs = [self._run(input_ids[rows], attention_mask[rows], options) for rows in order.split(sizes)]
        sequences, num_steps_taken, num_positions = zip(*outputs, strict=True)
        place = order.argsort()
        rows = [row for part in sequences for row in part]
        return LvnarOnnxGenerateOutput(
            sequences=pad_sequence(rows, batch_first=True, padding_value=self.config.pad_token_id)[place],
            num_steps_taken=torch.cat(num_steps_taken)[place],
            num_positions=torch.stack(num_positions).sum(0),
        )

    def _run(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, options: DecodingOptions
    ) -> tuple[torch.Tensor, ...]:
        """The outputs of the graph for a part of a batch, without the columns that none of its sentences needs."""
        width = int(attention_mask.any(0).nonzero().max()) + 1
        input_ids, attention_mask = input_ids[:, :width], attention_mask[:, :width]
        limit = self.config.max_position_embeddings
        candidates = input_ids.new_full((len(input_ids), 1), self.config.pad_token_id)
        min_confidence = torch.tensor(float("inf"))  # the whole vocabulary
        if self.shortlist is not None:
            candidates = self.shortlist.candidates_of(input_ids, attention_mask, self.config)
            min_confidence = self.shortlist.min_confidence
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "num_refinement_steps": torch.tensor(min(options.num_refinement_steps, MAX_STEPS)),
            "max_length": torch.tensor(min(options.max_length or limit, limit)),
            "candidates": candidates,
            "min_confidence": min_confidence,
        }
        try:
            outputs = self.session.run(list(_OUTPUTS), {name: tensor.numpy() for name, tensor in inputs.items()})
            sequences, num_steps_taken, num_positions = map(torch.from_numpy, outputs)
        except Exception as error:  # of classes that onnxruntime does not name in public
            raise ValueError(f"ONNX Runtime cannot compute {self.file}: {error}") from error
        if len(num_positions) == 2 and int(num_positions.min()) < 0:  # as the graph says that a number was not finite
            raise ValueError(NOT_FINITE)
        is_sound = sequences.dim() == 2 and len(sequences) == len(num_steps_taken) == len(input_ids)
        if not is_sound or bool(((sequences < 0) | (sequences >= self.config.decoder_vocab_size)).any()):
            raise ValueError(f"{self.file} gives no translations of {len(input_ids)} sentences: make it again.")
        return sequences, num_steps_taken, num_positions


_INPUTS = ("input_ids", "attention_mask", "num_refinement_steps", "max_length", "candidates", "min_confidence")
_OUTPUTS = ("sequences", "num_steps_taken", "num_positions")
