"""The export to ONNX of what a search asks for: the cells of a translation, and an autoregressive model's scores.

Two graphs, whose batch, lengths and numbers of candidates are dynamic:

    of the cells    input_ids, attention_mask   (batch, source_length) int64
                    targets                     (batch, target_length) int64, the translations before the last step
                    is_refined                  () bool, whether there are any; else the latents are the prior's means
                    tokens                      (batch, T, k) int64, of each cell, see `cell_choices`
                    scores                      (batch, T, 2 k + 1) float32

    of a rescorer   input_ids, attention_mask   (batch, source_length) int64
                    rows                        (candidates,) int64, the sentence of each
                    targets                     (candidates, target_length) int64, padded on the right
                    scores                      (candidates,) float32, log p(y | x) a token, nats
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lvnar_hf.ctc_lvnar import num_ctc_cells
from lvnar_hf.engines.onnx_export import (
    SOURCE_NAMES,
    Piece,
    SourcePieces,
    attend,
    decoder_states,
    encoded_source,
    export_piece,
    source_pieces,
    write_graphs,
)
from lvnar_hf.engines.onnx_graph import assemble_cells, assemble_one
from lvnar_hf.engines.search import CELL_FILES, RESCORER_FILES
from lvnar_hf.files.fingerprints import weights_fingerprint
from lvnar_hf.modeling_lvnar import LvnarForConditionalGeneration
from lvnar_hf.search_lvnar import cell_choices

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx import ModelProto

RESCORER_TYPES = ("marian",)


class _Cells(Piece):
    """The likeliest tokens of each cell, given latents."""

    def forward(
        self,
        latents: torch.Tensor,
        attention_mask: torch.Tensor,
        embeddings: torch.Tensor,
        hidden_states: torch.Tensor,
        of_decoder: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.model.config
        source = encoded_source(attention_mask, embeddings, hidden_states, of_decoder)
        num_cells = num_ctc_cells(attention_mask.sum(-1), config.upsampling_ratio)
        states, _ = decoder_states(self.model, source, latents, num_cells)
        return cell_choices(states @ self.model.output_weight.T, config.pad_token_id)


class _Attention(nn.Module):
    """Attention of Marian's, its projections of the same states in one product."""

    def __init__(self, attention: Any, is_causal: bool = False, has_own_queries: bool = False):
        super().__init__()
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.queries = projections.pop(0) if has_own_queries else None
        self.weight = nn.Parameter(torch.cat([projection.weight for projection in projections]))
        self.bias = nn.Parameter(torch.cat([projection.bias for projection in projections]))
        self.output, self.num_heads, self.is_causal = attention.out_proj, attention.num_heads, is_causal

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None, source: torch.Tensor | None = None) -> Any:
        projected = nn.functional.linear(states if source is None else source, self.weight, self.bias)
        if self.queries is None:
            queries, keys, values = projected.chunk(3, dim=-1)
        else:
            queries, (keys, values) = self.queries(states), projected.chunk(2, dim=-1)
        return self.output(attend(queries, keys, values, mask, self.num_heads, self.is_causal))


class _Layer(nn.Module):
    """A layer of Marian's, with normalisation after each part."""

    def __init__(self, layer: Any, is_decoder: bool):
        super().__init__()
        self.own = _Attention(layer.self_attn, is_causal=is_decoder)
        self.own_norm, self.norm = layer.self_attn_layer_norm, layer.final_layer_norm
        self.cross = _Attention(layer.encoder_attn, has_own_queries=True) if is_decoder else None
        self.cross_norm = layer.encoder_attn_layer_norm if is_decoder else None
        self.up, self.down, self.activation = layer.fc1, layer.fc2, layer.activation_fn

    def forward(self, states: torch.Tensor, mask: torch.Tensor, source: torch.Tensor | None = None) -> torch.Tensor:
        states = self.own_norm(states + self.own(states, mask if self.cross is None else None))
        if self.cross is not None and self.cross_norm is not None:
            states = self.cross_norm(states + self.cross(states, mask, source))
        return self.norm(states + self.down(self.activation(self.up(states))))


class _Stack(nn.Module):
    """Encoder or decoder of Marian's."""

    def __init__(self, stack: Any, is_decoder: bool):
        super().__init__()
        self.embeddings, self.scale = stack.embed_tokens, stack.embed_scale
        self.positions: torch.Tensor
        self.register_buffer("positions", stack.embed_positions.weight.detach().clone())
        self.layers = nn.ModuleList([_Layer(layer, is_decoder) for layer in stack.layers])

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, source: torch.Tensor | None = None) -> torch.Tensor:
        states = self.embeddings(ids) * self.scale + self.positions[: ids.shape[1]]
        for layer in self.layers:
            states = layer(states, mask, source)
        return states


class _Scores(nn.Module):
    """log p(y | x) a token, of a Marian model: all tokens in one pass."""

    def __init__(self, model: Any):
        super().__init__()
        self.encoder, self.decoder = _Stack(model.model.encoder, False), _Stack(model.model.decoder, True)
        self.head, self.config = model.lm_head, model.config
        self.bias: torch.Tensor
        self.register_buffer("bias", model.final_logits_bias.detach().clone())

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        source = self.encoder(input_ids, attention_mask)
        start = torch.full_like(targets[:, :1], self.config.decoder_start_token_id)
        states = self.decoder(torch.cat([start, targets[:, :-1]], dim=1), attention_mask[rows], source[rows])
        logits = self.head(states) + self.bias
        # Not in one operation: ONNX Runtime's own is several times slower than these.
        most = logits.amax(-1, keepdim=True)
        normalizers = most + (logits - most).exp().sum(-1, keepdim=True).log()
        log_probs = (logits.gather(-1, targets[..., None]) - normalizers)[..., 0]
        is_token = targets != self.config.pad_token_id
        return log_probs.masked_fill(~is_token, 0.0).sum(-1) / is_token.sum(-1)


@torch.no_grad()
def export_cells(
    model: LvnarForConditionalGeneration, folder: str | Path, make_pieces: "Callable[[], SourcePieces] | None" = None
) -> dict[str, Path]:
    """Write `onnx/cells.onnx`, float32, and `onnx/cells_int8.onnx`; arguments, result and errors as of `export_onnx`.

    Raises:
        ValueError: the model has no cells.
    """
    if model.config.alignment != "ctc":
        raise ValueError("A beam search is for alignment 'ctc': this model predicts its lengths.")

    def graph() -> "ModelProto":
        pieces = source_pieces(model) if make_pieces is None else make_pieces()
        cells = export_piece(
            _Cells(pieces.model),
            (pieces.latents, *pieces.states, pieces.of_decoder),
            (*[pieces.dimensions] * 4, [pieces.dimensions] * len(pieces.of_decoder)),
            ["latents", *SOURCE_NAMES, *pieces.names],
            ["tokens", "scores"],
        )
        return assemble_cells(pieces.source, pieces.posterior, cells)

    return write_graphs(graph, folder, CELL_FILES, weights_fingerprint(model.state_dict()))


@torch.no_grad()
def export_rescorer(model: PreTrainedModel, folder: str | Path, made_from: str | None = None) -> dict[str, Path]:
    """Write `onnx/rescorer.onnx`, float32, and `onnx/rescorer_int8.onnx`, of an autoregressive model.

    Other arguments, result and errors are as of `export_onnx`.

    Args:
        made_from: the fingerprint of its weights, as they are stored.

    Raises:
        ValueError: it is of a type that is not exported.
    """
    if model.config.model_type not in RESCORER_TYPES:
        raise ValueError(
            f"The model is a {model.config.model_type}; lvnar export is for models of type lvnar, and for rescorers of "
            f"type {', '.join(RESCORER_TYPES)}."
        )

    def graph() -> "ModelProto":
        scores = _Scores(model.float().eval())
        sides = {name: torch.export.Dim(name, max=4096) for name in ("batch", "candidates")}
        limit = model.config.max_position_embeddings
        lengths = {name: torch.export.Dim(name, max=limit) for name in ("source_length", "target_length")}
        ids = torch.full((2, 5), 3)
        of_source, of_targets = {0: sides["batch"], 1: lengths["source_length"]}, {0: sides["candidates"]}
        piece = export_piece(
            scores,
            (ids, torch.ones_like(ids), torch.tensor([0, 0, 1]), torch.full((3, 7), 3)),
            (of_source, of_source, of_targets, of_targets | {1: lengths["target_length"]}),
            ["input_ids", "attention_mask", "rows", "targets"],
            ["scores"],
        )
        return assemble_one(piece, "rescorer")

    return write_graphs(graph, folder, RESCORER_FILES, made_from)
