"""Several translations of a sentence in ONNX Runtime: a beam of the last cells, the best by its score or a rescorer's.

It is the search of `search_lvnar` with one latent, the prior's mean, on arrays; imports neither torch nor transformers.
`onnx_search` says what the graphs take and give.
"""

import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from lvnar_hf.ctc_beam_lvnar import BeamOptions, Cells, prefix_beam_search
from lvnar_hf.decoding_options_lvnar import NOT_FINITE, DecodingOptions
from lvnar_hf.engines.graph import Graph
from lvnar_hf.engines.sessions import MAX_PART_POSITIONS, Parts, Sessions
from lvnar_hf.files.fingerprints import refuse_stale
from lvnar_hf.sizes_lvnar import num_cells_of
from lvnar_hf.soundness_lvnar import read_json_object

CELL_FILES = {"float32": "onnx/cells.onnx", "int8": "onnx/cells_int8.onnx"}  # in a model repository, by precision
RESCORER_FILES = {"float32": "onnx/rescorer.onnx", "int8": "onnx/rescorer_int8.onnx"}  # in a rescorer's
SCORES = ("beam", "rescorer")


def is_for_graphs(search: Mapping[str, Any]) -> bool:
    """Whether the graphs can do a search, by its options: a beam alone, and one of SCORES."""
    others = ("num_latent_candidates", "num_length_candidates")
    is_beam = all(search.get(name) in (None, 1) for name in others) and search.get("beam_size") is not None
    return is_beam and search.get("candidate_score") in (None, *SCORES)


class Candidates(NamedTuple):
    """Of a sentence, the best first.

    Args:
        rows: ids of each.
        scores: of each, by `candidate_score`.
    """

    rows: list[list[int]]
    scores: list[float]


class OnnxRescorer:
    """An autoregressive model that scores translations in ONNX Runtime: `rescorer` of an `LvnarOnnxModel`.

    Args:
        config: has `decoder_start_token_id`, `vocab_size` and `pad_token_id`.
        file: the graph.
        num_threads: of one call; 0: as many as ONNX Runtime finds right.

    Raises:
        ImportError, ValueError: as of `Sessions`.
    """

    def __init__(self, config: Any, file: Path, num_threads: int = 0):
        self.config, self.file, self.num_threads = config, file, num_threads
        self.sessions = Sessions(file, num_threads, ("input_ids", "attention_mask", "rows", "targets"), ("scores",))

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, precision: str = "int8", num_threads: int = 0) -> "OnnxRescorer":
        """From the folder of a model.

        Raises:
            FileNotFoundError: there is no such folder, or it has no graph; says how to make it.
            StaleError: the graph was made from other weights than those in the folder.
            ValueError: for another precision, a damaged file, and what the class itself refuses.
        """
        if precision not in RESCORER_FILES:
            raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(RESCORER_FILES)}.")
        file = Path(name) / RESCORER_FILES[precision]
        if not file.is_file():
            raise FileNotFoundError(f"{name} has no {RESCORER_FILES[precision]}. Make it: lvnar export --model {name}")
        config = SimpleNamespace(**read_json_object(Path(name) / "config.json"))
        rescorer = cls(config, file, num_threads)
        refuse_stale(file, rescorer.sessions.made_from, name, f"lvnar export --model {name} --overwrite")
        return rescorer

    def __reduce__(self) -> tuple[object, ...]:
        """A copy, or what is pickled, opens the graph's file again."""
        return type(self), (self.config, self.file, self.num_threads)

    def log_probs(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, of: list[list[list[int]]], is_alone: bool = True
    ) -> list[float]:
        """log p(y | x) a token, nats, of the candidates of all sentences, one sentence after another.

        Args:
            input_ids, attention_mask: (batch, source_length).
            of: the ids of each sentence's candidates.
            is_alone: as of `Sessions.run`.
        """
        scores: list[float] = []
        for part in self._parts(of):
            candidates = [ids for row in part for ids in of[row]]
            targets = padded(candidates, self.config.pad_token_id)
            numbers = np.repeat(np.arange(len(part)), [len(of[row]) for row in part])
            width = int(attention_mask[part].sum(-1).max())
            inputs = {
                "input_ids": np.ascontiguousarray(input_ids[part, :width]),
                "attention_mask": np.ascontiguousarray(attention_mask[part, :width]),
                "rows": numbers,
                "targets": targets,
            }
            scores += self.sessions.run(inputs, is_alone)[0].tolist()
        return scores

    @staticmethod
    def _parts(of: list[list[list[int]]]) -> list[list[int]]:
        """Neighbouring sentences whose candidates have at most MAX_PART_POSITIONS tokens, padding included; or one."""
        parts: list[list[int]] = [[]]
        number, longest = 0, 0  # of the part's candidates, and its longest
        for row, candidates in enumerate(of):
            own_longest = max(map(len, candidates), default=0)
            number, longest = number + len(candidates), max(longest, own_longest)
            if parts[-1] and number * longest > MAX_PART_POSITIONS:
                parts.append([])
                number, longest = len(candidates), own_longest
            parts[-1].append(row)
        return parts


class GraphSearch:
    """A beam search of the last cells of a `Graph`'s translations.

    Args:
        graph: of the model, for the steps before the last one.
        file: the graph of its cells.
        num_threads: of one call.

    Raises:
        ImportError, StaleError, ValueError: as of `Sessions`.
    """

    def __init__(self, graph: Graph, file: Path, num_threads: int):
        self.graph, self.config = graph, graph.config
        inputs = ("input_ids", "attention_mask", "targets", "is_refined")
        self.sessions = Sessions(file, num_threads, inputs, ("tokens", "scores"))
        self.parts = Parts(self.config, num_threads, min_positions=1)

    def translate(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, options: DecodingOptions
    ) -> tuple[list[Candidates], np.ndarray]:
        """Candidates of each sentence, and the refinement steps they took, (batch,).

        Args:
            input_ids, attention_mask: (batch, source_length) int64, with padding on the right.

        Raises:
            ValueError: numbers were not finite, or a graph cannot be computed.
        """
        num_steps = np.zeros(len(input_ids), dtype=np.int64)
        targets: list[np.ndarray] | None = None
        if options.num_refinement_steps:
            before = self.graph.translate(
                input_ids, attention_mask, options.num_refinement_steps - 1, options.max_length
            )
            targets, num_steps = before.rows, before.num_steps_taken + 1

        def search(rows: list[int], is_alone: bool) -> list[Candidates]:
            width = int(attention_mask[rows].sum(-1).max())
            ids, mask = (np.ascontiguousarray(array[rows, :width]) for array in (input_ids, attention_mask))
            of_rows = None if targets is None else [targets[row] for row in rows]
            return self._search(ids, mask, of_rows, options, is_alone)

        parts = self.parts(attention_mask.sum(-1).tolist())
        found = dict(zip(itertools.chain(*parts), itertools.chain(*self.parts.map(search, parts)), strict=True))
        return [found[row] for row in range(len(input_ids))], num_steps

    def _search(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        targets: list[np.ndarray] | None,
        options: DecodingOptions,
        is_alone: bool,
    ) -> list[Candidates]:
        """The candidates of each sentence of a part."""
        wanted, padding = options.search, self.config.pad_token_id
        before = padded([[padding]] * len(input_ids) if targets is None else targets, padding)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "targets": before,
            "is_refined": np.array(targets is not None),
        }
        tokens, scores = self.sessions.run(inputs, is_alone)
        if not np.isfinite(scores).all():
            raise ValueError(NOT_FINITE)
        if options.num_target_ids is not None:  # rows of the embedding that are no words
            scores[..., : tokens.shape[-1]] *= tokens < options.num_target_ids
        limit = min(options.max_length or self.config.max_position_embeddings, self.config.max_position_embeddings)
        beam = BeamOptions(wanted.beam_size, wanted.token_bonus, wanted.language_model, wanted.language_model_weight)
        num_cells = [num_cells_of(n, self.config.upsampling_ratio) for n in attention_mask.sum(-1).tolist()]
        found = []
        for ids, of_cells, number in zip(tokens.tolist(), scores.tolist(), num_cells, strict=True):
            likeliest = prefix_beam_search(Cells.from_choices(ids[:number], of_cells[:number]), beam)
            least = likeliest[0][1] - wanted.rescoring_margin if wanted.score == "rescorer" else -np.inf
            different: dict[tuple[int, ...], float] = {}
            for target, score in likeliest:
                if score >= least:
                    different.setdefault(tuple(target[:limit]) or (self.config.eos_token_id,), score)
            found.append(different)
        rows = [[list(target) for target in different] for different in found]
        values = [[*different.values()] for different in found]
        if wanted.score == "rescorer":
            values = self._rescored(input_ids, attention_mask, rows, options, is_alone)
        return [_best_first(*pair, wanted.num_return_candidates) for pair in zip(rows, values, strict=True)]

    def _rescored(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        rows: list[list[list[int]]],
        options: DecodingOptions,
        is_alone: bool,
    ) -> list[list[float]]:
        """The rescorer's scores; where there is one candidate and no score is asked for, 0."""
        asked = [row for row, of in enumerate(rows) if len(of) > 1 or options.return_dict_in_generate]
        scores: Iterator[float] = iter(())
        if asked:
            candidates = [rows[row] for row in asked]
            log_probs = options.search.rescorer.log_probs
            scores = iter(log_probs(input_ids[asked], attention_mask[asked], candidates, is_alone))
        is_asked = set(asked)
        values = [[next(scores) if row in is_asked else 0.0 for _ in of] for row, of in enumerate(rows)]
        if not all(map(math.isfinite, itertools.chain(*values))):
            raise ValueError(NOT_FINITE)
        return values


def _best_first(rows: list[list[int]], scores: list[float], num_kept: int) -> Candidates:
    """As many as are kept; equals in their order."""
    order = sorted(range(len(rows)), key=lambda place: -scores[place])[:num_kept]
    return Candidates([rows[place] for place in order], [scores[place] for place in order])


def padded(rows: Sequence[Sequence[int] | np.ndarray], padding: int) -> np.ndarray:
    """(rows, longest) int64."""
    array = np.full((len(rows), max(map(len, rows))), padding, dtype=np.int64)
    for place, row in enumerate(rows):
        array[place, : len(row)] = row
    return array
