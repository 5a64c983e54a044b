"""The export to ONNX: torch exports three pieces of the model, `onnx_graph` makes one graph of them.

The pieces are the encoding of the source, the posterior, and what makes a translation of latents.
"""

import copy
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import nn

from lvnar_hf.ctc_lvnar import is_kept, move_left, num_ctc_cells, part_equal_words
from lvnar_hf.engines.graph import FILES
from lvnar_hf.engines.onnx_graph import DOMAIN, OPSET, assemble, lay_out_for_products, move_weights_into_loop
from lvnar_hf.engines.sessions import GRAPH_VERSION, VERSION_KEY
from lvnar_hf.engines.shortlist import Shortlist
from lvnar_hf.files.atomic import atomic_file
from lvnar_hf.files.fingerprints import KEY as FINGERPRINT
from lvnar_hf.files.fingerprints import weights_fingerprint
from lvnar_hf.layers_lvnar import KeysValues, LvnarAttention
from lvnar_hf.length_lvnar import lengths_to_mask, likeliest_lengths
from lvnar_hf.modeling_lvnar import LvnarForConditionalGeneration
from lvnar_hf.refinement_lvnar import EncodedSource

if TYPE_CHECKING:
    from onnx import ModelProto

_MAX_FLOAT = 3e38
_NOT_FINITE = -(2**40)  # what is added to `num_positions` where a number is not finite


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    num_heads: int,
    is_causal: bool = False,
) -> torch.Tensor:
    """Attention by ONNX Runtime's own operation, which transposes nothing; outside an export, zeros.

    Args:
        queries, keys, values: (batch, length, hidden_size).
        mask: (batch, key_length), 1 at valid positions.
        is_causal: each position sees itself and those before it.
    """
    context: torch.Tensor = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (queries, keys, values, None, None if mask is None else mask.to(torch.int32)),
        {"num_heads": num_heads, "unidirectional": int(is_causal)},
        dtype=queries.dtype,
        shape=queries.shape,
        version=1,
    )
    return context


class _ExportedAttention(LvnarAttention):
    """In the graph, attention is `attend`; keys and values are (batch, key_length, hidden_size).

    Self-attention has one product for queries, keys and values, whose input is quantised once.
    """

    def join_projections(self) -> None:
        """Make the product of self-attention."""
        parts = self.query_proj, self.key_value_proj
        self.joint_proj = nn.Linear(self.query_proj.in_features, sum(part.out_features for part in parts))
        self.joint_proj.weight.data = torch.cat([part.weight for part in parts])
        self.joint_proj.bias.data = torch.cat([part.bias for part in parts])

    def project_keys_values(self, states: torch.Tensor) -> KeysValues:
        keys, values = self.key_value_proj(states).chunk(2, dim=-1)
        return keys, values

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, keys_values: KeysValues | None = None
    ) -> torch.Tensor:
        if keys_values is None:
            queries, keys, values = self.joint_proj(hidden_states).chunk(3, dim=-1)
        else:
            queries, (keys, values) = self.query_proj(hidden_states), keys_values
        mask = None if attention_mask is None else attention_mask[:, 0, 0]
        return self.output_proj(attend(queries, keys, values, mask, self.num_heads))


class Piece(nn.Module):
    """A part of the model, for a graph."""

    def __init__(self, model: LvnarForConditionalGeneration):
        super().__init__()
        self.model = model


class _Source(Piece):
    """The source, encoded: the prior's means, and the tensors of `encoded_source`."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        source = self.model.encode(input_ids, attention_mask)
        return source.prior_means, source.embeddings, source.hidden_states, *_of_decoder(source)


class _Posterior(Piece):
    """The means of q(z | x, y)."""

    def forward(
        self, targets: torch.Tensor, attention_mask: torch.Tensor, embeddings: torch.Tensor, hidden_states: torch.Tensor
    ) -> torch.Tensor:
        source = encoded_source(attention_mask, embeddings, hidden_states, [])
        target_mask = (targets != self.model.config.pad_token_id).long()
        return self.model.infer_posterior(source, targets, target_mask)[0]


class _Translation(Piece):
    """argmax p(y | x, z), as `generate` has it, in operations that know no number of positions beforehand."""

    of_padding: torch.Tensor  # (target_vocab_size,), added to logits: padding is no word, unless it is blank

    def __init__(self, model: LvnarForConditionalGeneration):
        super().__init__(model)
        config = model.config
        of_padding = torch.zeros(config.decoder_vocab_size)
        of_padding[config.pad_token_id] = -config.blank_penalty if config.alignment == "ctc" else float("-inf")
        self.register_buffer("of_padding", of_padding)

    def forward(
        self,
        latents: torch.Tensor,
        attention_mask: torch.Tensor,
        embeddings: torch.Tensor,
        hidden_states: torch.Tensor,
        of_decoder: list[torch.Tensor],
        max_length: torch.Tensor,
        candidates: torch.Tensor,
        min_confidence: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, longest translation) ids, and what is added to `num_positions`."""
        config = self.model.config
        is_ctc = config.alignment == "ctc"
        source = encoded_source(attention_mask, embeddings, hidden_states, of_decoder)
        if is_ctc:
            lengths = num_ctc_cells(attention_mask.sum(-1), config.upsampling_ratio)
        else:
            length_logits = self.model.predict_length(source, latents)
            lengths = likeliest_lengths(config, length_logits, attention_mask, max_length)[:, 0]
        states, mask = decoder_states(self.model, source, latents, lengths)
        weight = self.model.output_weight
        padding = self.of_padding[candidates]
        padding.masked_fill_(Shortlist.is_padding(candidates, config), float("-inf"))
        scores = states @ weight[candidates].transpose(1, 2) + padding[:, None]
        best, choice = scores.max(-1)
        confidence = -(scores - best[..., None]).exp().sum(-1).log()  # not a number, if padding is all there is
        targets = candidates.gather(1, choice)
        is_unsure = ~(confidence >= min_confidence) & (mask == 1)
        targets = torch.onnx.ops.symbolic(
            f"{DOMAIN}::LikeliestWhereUnsure",
            (targets, is_unsure, states, weight, self.of_padding),
            dtype=targets.dtype,
            shape=targets.shape,
            version=1,
        )
        total = states.masked_fill(mask[..., None] == 0, 0.0).sum()
        if not is_ctc:
            total = total + length_logits.sum()
        num_positions = torch.stack([mask.sum(), is_unsure.sum()])
        num_positions = torch.where(total.abs() < _MAX_FLOAT, num_positions, _NOT_FINITE)
        if is_ctc:
            cells = targets.masked_fill(mask == 0, config.pad_token_id)
            if config.blank_penalty > 0.0:
                word_logits, blank_logits = ((states * weight[ids]).sum(-1) for ids in (cells, config.pad_token_id))
                is_forced = (cells != config.pad_token_id) & (blank_logits >= word_logits)
                cells = part_equal_words(cells, is_forced, config.pad_token_id)
            return self._collapsed(cells, mask, max_length), num_positions
        return targets.masked_fill(mask == 0, config.pad_token_id), num_positions

    def _collapsed(self, cells: torch.Tensor, mask: torch.Tensor, max_length: torch.Tensor) -> torch.Tensor:
        """Cells and their mask, (batch, T), to (batch, longest translation), as `likeliest_targets` has it."""
        padding, numbers = self.model.config.pad_token_id, torch.arange(cells.shape[1])
        targets = move_left(cells, is_kept(cells, mask, padding), padding).masked_fill(numbers >= max_length, padding)
        is_empty = (numbers == 0) & (targets == padding)
        targets = targets.masked_fill(is_empty, self.model.config.eos_token_id)
        longest: Any = (targets != padding).sum(-1).max().clamp(min=2).item()
        torch._check(longest >= 2)
        torch._check(longest <= cells.shape[1])
        return targets[:, :longest]


def _of_decoder(source: EncodedSource) -> list[torch.Tensor]:
    """What the decoder needs of the source: keys and values by layer, then the states that are carried, if any."""
    carried = [] if source.carried_states is None else [source.carried_states]
    return [tensor for pair in source.decoder_keys_values for tensor in pair] + carried


def decoder_states(
    model: LvnarForConditionalGeneration, source: EncodedSource, latents: torch.Tensor, lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """States (batch, longest, hidden_size) of as many positions as each sentence has, and their mask.

    Args:
        lengths: (batch,), of the targets, or of the cells.
    """
    config = model.config
    longest: Any = lengths.max().clamp(min=2).item()  # torch.export takes a length of 1 for a special case
    torch._check(longest >= 2)
    most = config.max_position_embeddings
    most = num_ctc_cells(most, config.upsampling_ratio) if config.alignment == "ctc" else most
    torch._check(longest <= max(2, most))
    mask = lengths_to_mask(lengths, longest)
    of_source = source.decoder_keys_values, source.attention_mask, mask, source.carried_states
    return model.decoder(latents, *of_source), mask


def encoded_source(
    attention_mask: torch.Tensor, embeddings: torch.Tensor, hidden_states: torch.Tensor, of_decoder: list[torch.Tensor]
) -> EncodedSource:
    """As `encode` gives it, without the prior."""
    pairs = tuple(zip(of_decoder[::2], of_decoder[1::2], strict=False))
    carried = of_decoder[-1] if len(of_decoder) % 2 else None
    unused = hidden_states[..., :0].float()
    return EncodedSource(attention_mask, embeddings, hidden_states, unused, unused, pairs, carried)


@torch.no_grad()
def export_onnx(
    model: LvnarForConditionalGeneration, folder: str | Path, make_pieces: "Callable[[], SourcePieces] | None" = None
) -> dict[str, Path]:
    """Write `onnx/model.onnx`, float32, and `onnx/model_int8.onnx`, its weights and activations in 8 bits.

    In the second, the products with weights are dynamically quantised, a scale for each column of a weight; embeddings
    and what is between the products stay as they are.

    Args:
        model: in any precision.
        folder: of the model repository.
        make_pieces: gives the `source_pieces` of the model, for who exports its other graphs too.

    Returns:
        The files, by precision; they get their names when both are whole.

    Raises:
        OSError: the disk is full; what was there before stays.
        ImportError: onnx, onnxscript or onnxruntime is missing; says how to install them.
    """
    sizes = (model.config.pad_token_id, model.config.decoder_vocab_size)

    def graph() -> "ModelProto":
        pieces = source_pieces(model) if make_pieces is None else make_pieces()
        return assemble(pieces.source, pieces.posterior, _export_translation(pieces), *sizes)

    return write_graphs(graph, folder, FILES, weights_fingerprint(model.state_dict()))


def write_graphs(
    make_graph: "Callable[[], ModelProto]", folder: str | Path, names: Mapping[str, str], made_from: str | None
) -> dict[str, Path]:
    """A graph in float32 and in int8; result and errors as of `export_onnx`.

    Args:
        make_graph: in float32; is called when the packages are there.
        names: of the files in the folder, by precision.
        made_from: the fingerprint of the weights.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch's exporter needs it)
        from onnxruntime.quantization import quantize_dynamic
    except ImportError as error:
        raise ImportError(f"The ONNX export needs {error.name}: pip install 'lvnar-hf[export]'") from error
    files = {precision: Path(folder) / name for precision, name in names.items()}
    graph = make_graph()
    metadata = {VERSION_KEY: GRAPH_VERSION} | ({} if made_from is None else {FINGERPRINT: made_from})
    onnx.helper.set_model_props(graph, metadata)
    onnx.checker.check_model(graph)
    files["float32"].parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(files["float32"]) as float32_file, atomic_file(files["int8"]) as int8_file:
        onnx.save(graph, str(float32_file))
        lay_out_for_products(graph.graph)
        quantize_dynamic(
            graph,
            int8_file,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,  # 7 bits of a weight: with 8, processors without VNNI overflow
            extra_options={"EnableSubgraph": True},
        )
        quantised = onnx.load(str(int8_file))
        onnx.helper.set_model_props(quantised, metadata)
        move_weights_into_loop(quantised.graph)
        onnx.save(quantised, str(int8_file))
    return files


def export_piece(
    module: nn.Module, arguments: tuple, shapes: tuple, inputs: list[str], outputs: list[str]
) -> "ModelProto":
    """A module by torch's exporter.

    Args:
        arguments: an example of what it is called with.
        shapes: which of their dimensions are dynamic, as `torch.onnx.export` has it.
        inputs, outputs: names.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            module.eval(),
            arguments,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            verbose=False,
        )
    return program.model_proto


class SourcePieces(NamedTuple):
    """What all graphs of a model begin with, and an example for the rest of them.

    Args:
        model: as it is exported.
        source, posterior: their inputs and outputs have the names that the pieces are joined by.
        latents, states: (batch, source_length, …): latents; attention mask, embeddings and states of the source.
        of_decoder, names: what the decoder needs of the source, see `_of_decoder`.
        dimensions: the dynamic ones of what has a source length.
    """

    model: LvnarForConditionalGeneration
    source: "ModelProto"
    posterior: "ModelProto"
    latents: torch.Tensor
    states: tuple[torch.Tensor, ...]
    of_decoder: list[torch.Tensor]
    names: list[str]
    dimensions: dict[int, Any]


SOURCE_NAMES = ["attention_mask", "embeddings", "hidden_states"]


def source_pieces(model: LvnarForConditionalGeneration) -> SourcePieces:
    """The pieces of a model, in any precision, that encode the source and give the posterior."""
    model = copy.deepcopy(model).float().eval()
    for module in model.modules():
        if isinstance(module, LvnarAttention):
            module.__class__ = _ExportedAttention
            cast(_ExportedAttention, module).join_projections()
    config = model.config
    batch, source_length, target_length = (
        torch.export.Dim("batch", max=4096),
        torch.export.Dim("source_length", max=config.max_position_embeddings),
        torch.export.Dim("target_length", max=config.max_position_embeddings),
    )
    ids = torch.full((2, 5), config.vocab_size - 1)
    mask = torch.ones_like(ids)
    source = model.encode(ids, mask)
    names = [f"decoder_{kind}_{layer}" for layer in range(config.num_decoder_layers) for kind in ("keys", "values")]
    names += ["carried_states"] if config.carries_source_states else []
    of_source = {0: batch, 1: source_length}
    states = (mask, source.embeddings, source.hidden_states)
    source_piece = export_piece(
        _Source(model),
        (ids, mask),
        (of_source, of_source),
        ["input_ids", "attention_mask"],
        ["prior_means", "embeddings", "hidden_states", *names],
    )
    posterior_piece = export_piece(
        _Posterior(model),
        (torch.full((2, 7), 3), *states),
        ({0: batch, 1: target_length}, *[of_source] * 3),
        ["targets", *SOURCE_NAMES],
        ["posterior_means"],
    )
    of_decoder = _of_decoder(source)
    return SourcePieces(model, source_piece, posterior_piece, source.prior_means, states, of_decoder, names, of_source)


def _export_translation(pieces: SourcePieces) -> "ModelProto":
    """The piece that decodes, of the graph that translates."""
    max_length = torch.tensor(pieces.model.config.max_position_embeddings)
    candidates, min_confidence = torch.full((2, 3), 3), torch.tensor(0.0)
    num_candidates = torch.export.Dim("num_candidates", max=2**20)
    return export_piece(
        _Translation(pieces.model),
        (pieces.latents, *pieces.states, pieces.of_decoder, max_length, candidates, min_confidence),
        (
            *[pieces.dimensions] * 4,
            [pieces.dimensions] * len(pieces.of_decoder),
            *({}, {0: pieces.dimensions[0], 1: num_candidates}, {}),
        ),
        ["latents", *SOURCE_NAMES, *pieces.names, "max_length", "candidates", "min_confidence"],
        ["new_targets", "pass_positions"],
    )
