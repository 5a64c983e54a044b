"""The model in ONNX Runtime: the same `generate`, from one graph and without the PyTorch weights.

    from lvnar_hf import LvnarTokenizer
    from lvnar_hf.engines.onnx import LvnarOnnxModel

    model = LvnarOnnxModel.from_pretrained("model_cards/lvnar-tatoeba-en-de", precision="int8")
    translator = pipeline("translation", model=model, tokenizer=AutoTokenizer.from_pretrained(...))

The graph stands beside the weights, as `onnx/model.onnx` or `onnx/model_int8.onnx`; `lvnar export` writes both.
With `shortlist=True` the vocabulary is cut for each sentence, see `lvnar_hf.engines.shortlist`. With `search=True`,
and the graphs that `lvnar export --search` writes, a beam search chooses among translations:

    rescorer = OnnxRescorer.from_pretrained("teacher")
    model = LvnarOnnxModel.from_pretrained("model_cards/lvnar-tatoeba-en-de", precision="int8", search=True)
    model.generate(**batch, beam_size=4, rescorer=rescorer)
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig
from transformers.utils import cached_file

from lvnar_hf.configuration_lvnar import LvnarConfig
from lvnar_hf.decoding_options_lvnar import GENERATION_DEFAULTS, DecodingOptions
from lvnar_hf.engines.base import LvnarEngine
from lvnar_hf.engines.graph import FILES, Graph
from lvnar_hf.engines.search import CELL_FILES, SCORES, Candidates, GraphSearch, OnnxRescorer, padded
from lvnar_hf.engines.shortlist import Shortlist
from lvnar_hf.files.fingerprints import refuse_stale
from lvnar_hf.generation_lvnar import LvnarGenerateOutput
from lvnar_hf.soundness_lvnar import check_generation_fields


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
        cells_file: the graph of the cells, for a beam search; of its candidates, the best by its own score or by an
            `OnnxRescorer`.

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
        cells_file: Path | None = None,
    ):
        self.config, self.generation_config, self.shortlist = config, generation_config, shortlist
        self.file, self.num_threads, self.cells_file = file, num_threads, cells_file
        arrays = None if shortlist is None else shortlist.arrays
        threads = num_threads or torch.get_num_threads()
        self.graph = Graph(config, file, threads, arrays)
        self.search = None if cells_file is None else GraphSearch(self.graph, cells_file, threads)

    def __reduce__(self) -> tuple[object, ...]:
        """A copy, or what is pickled, opens the graph's file again."""
        arguments = (self.config, self.generation_config, self.file, self.num_threads, self.shortlist)
        return type(self), (*arguments, self.cells_file)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike,
        precision: str = "float32",
        num_threads: int | None = None,
        shortlist: bool = False,
        search: bool = False,
        **where: object,
    ) -> "LvnarOnnxModel":
        """From a model folder or a repository of the Hub.

        Args:
            name: folder or Hub id.
            precision: "float32" or "int8".
            num_threads: of one call; by default torch's.
            shortlist: use the repository's shortlist.
            search: open the graph of the cells too, for a beam search.
            where: `revision`, `cache_dir`, `token`, `local_files_only`, as in transformers.

        Raises:
            StaleError: the graph or the shortlist was made from other weights than those that are in the folder, or the
                graph by another version of this package.
            ValueError: for another precision, a shortlist of another model, and what the class itself refuses.
            FileNotFoundError: the repository has no such graph, or no shortlist; says how to make it.
        """
        if precision not in FILES:
            raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(FILES)}.")
        files: list[Path] = []
        for option, path in (("", FILES[precision]), (" --search", CELL_FILES[precision]))[: 1 + search]:
            folder, _, file = path.rpartition("/")
            found = cached_file(str(name), file, subfolder=folder, _raise_exceptions_for_missing_entries=False, **where)
            if found is None:
                raise FileNotFoundError(f"{name} has no {path}. Make it: lvnar export --model {name}{option}")
            files.append(Path(found))
        config = LvnarConfig.from_pretrained(name, **where)
        file = cached_file(str(name), "generation_config.json", _raise_exceptions_for_missing_entries=False, **where)
        if file is not None:
            check_generation_fields(file, GENERATION_DEFAULTS["ctc"])
        generation_config = GenerationConfig.from_pretrained(name, **where)
        tokens = Shortlist.from_pretrained(name, config, **where) if shortlist else None
        engine = cls(config, generation_config, files[0], num_threads, tokens, *files[1:])
        made_from = [engine.graph.made_from] + ([] if engine.search is None else [engine.search.sessions.made_from])
        for graph_file, weights in zip(files, made_from, strict=True):
            refuse_stale(graph_file, weights, name, f"lvnar export --model {name} --overwrite")
        return engine

    @property
    def can_search(self) -> bool:  # type: ignore[override]
        return self.search is not None

    def _check_search(self, options: DecodingOptions) -> None:
        """Refuse a search that needs the PyTorch model."""
        super()._check_search(options)
        wanted = options.search
        if not wanted.is_asked:
            return
        if wanted.num_latent_candidates > 1:
            raise ValueError("num_latent_candidates needs the PyTorch model: here the beam has one latent.")
        if wanted.score not in SCORES:
            raise ValueError(
                f"candidate_score={wanted.score!r} needs the PyTorch model: here is {' or '.join(SCORES)}."
            )

    def _check_rescorer(self, rescorer: Any) -> None:
        if not isinstance(rescorer, OnnxRescorer):
            raise ValueError(
                f"rescorer is a {type(rescorer).__name__}; beside ONNX Runtime it is an OnnxRescorer: "
                "OnnxRescorer.from_pretrained(FOLDER), of a folder that lvnar export was called for."
            )

    def _refine(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, options: DecodingOptions
    ) -> LvnarOnnxGenerateOutput:
        for name in ("output_scores", "output_confidences"):
            if getattr(options, name):
                raise ValueError(f"{name}=True needs the PyTorch model: the graph of ONNX computes no probabilities.")
        source = input_ids.cpu().long().numpy(), attention_mask.cpu().long().numpy()
        if self.search is not None and options.search.is_asked:
            return self._of_candidates(*self.search.translate(*source, options), options)
        output = self.graph.translate(*source, options.num_refinement_steps, options.max_length)
        return LvnarOnnxGenerateOutput(
            sequences=torch.from_numpy(padded(output.rows, self.config.pad_token_id)),
            num_steps_taken=torch.from_numpy(output.num_steps_taken),
            num_positions=torch.from_numpy(output.num_positions),
        )

    def _of_candidates(
        self, found: list[Candidates], num_steps: np.ndarray, options: DecodingOptions
    ) -> LvnarOnnxGenerateOutput:
        padding, num_kept = self.config.pad_token_id, options.search.num_return_candidates
        sequences = padded([of_sentence.rows[0] for of_sentence in found], padding)
        output = LvnarOnnxGenerateOutput(torch.from_numpy(sequences), torch.from_numpy(num_steps))
        if options.return_dict_in_generate:
            rows = [ids for of in found for ids in of.rows + [[padding]] * (num_kept - len(of.rows))]
            output.candidates = torch.from_numpy(padded(rows, padding)).view(len(found), num_kept, -1)
            scores = [of.scores + [float("-inf")] * (num_kept - len(of.scores)) for of in found]
            output.candidate_scores = torch.tensor(scores)
        return output
