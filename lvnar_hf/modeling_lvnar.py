"""Latent-variable non-autoregressive translation model (Shu et al., 2020, arXiv 1908.07181).

What is unusual here: z is one continuous vector at each *source* position, so its shape does not depend on the target,
and everything is predicted in parallel. x is the source, y the target, l_y its length.

    prior p(z | x)             self-attention over x; its states are what the decoder attends to
    posterior q(z | x, y)      self-attention over y; then layers over x, without causal mask, that attend to it
    length p(l_y | z)          a softmax over l_y - |x|
    decoder p(y | x, z, l_y)   z carried from |x| to l_y positions (Eq. 6-8), self- and cross-attention, all at once

With `alignment="ctc"` there is no length predictor: z is carried to T = ⌈r |x|⌉ cells, and p(y | x, z) is the sum over
all ways to spell y in them (`ctc_lvnar`). A position of the decoder is then a cell.

Masks are 1 at valid positions; padding is on the right. Lengths count the end-of-sentence token, which closes every
source and every target.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from .confidence_lvnar import Calibration
from .configuration_lvnar import LvnarConfig
from .ctc_lvnar import bigram_loss, ctc_cell_mask, ctc_nll, glanced_cells, likeliest_alignment
from .decoding_options_lvnar import GENERATION_DEFAULTS, DecodingOptions
from .generation_lvnar import LvnarGenerateOutput, LvnarGenerationMixin
from .inputs_lvnar import check_evaluation_mode, check_inputs
from .layers_lvnar import LvnarEmbedding, LvnarOutputProjection, sinusoidal_positions
from .length_lvnar import LvnarLengthPredictor, LvnarLengthTransform
from .losses_lvnar import IGNORED_LABEL, LvnarOutput, budgeted_kl, gaussian_kl, length_nll, token_nll
from .parts_lvnar import LvnarDecoder, LvnarGaussianHead, LvnarPosterior, LvnarPrior
from .refinement_lvnar import (
    EncodedSource,
    likeliest_targets,
    mix_own_translations,
    refine,
    target_positions,
    translate_in_parts,
)
from .search_lvnar import search
from .soundness_lvnar import check_generation_fields, check_shapes, is_finite, shapes_of, stored_shapes
from .trust_lvnar import SafeLoadingMixin

# So that they are saved beside this module, and found: from a folder, transformers 4 copies what this module imports,
# but not what those import in turn.
# isort: split
from .budget_lvnar import CostTable  # noqa: F401
from .ctc_beam_lvnar import BeamOptions  # noqa: F401
from .figures_lvnar import figures_of  # noqa: F401
from .markup_lvnar import mask_line  # noqa: F401
from .names_lvnar import find_names  # noqa: F401
from .pipeline_lvnar import LvnarTranslationPipeline  # noqa: F401
from .repetitions_lvnar import find_stutter  # noqa: F401
from .search_options_lvnar import SCORES  # noqa: F401
from .segmentation_lvnar import is_unspaced  # noqa: F401
from .sentences_lvnar import SentenceSplitter  # noqa: F401
from .sizes_lvnar import check_sizes  # noqa: F401
from .subwords_lvnar import PLACEHOLDERS  # noqa: F401
from .text_lvnar import TextFormat  # noqa: F401
from .tokenization_lvnar import LvnarTokenizer  # noqa: F401
from .vocabulary_lvnar import INVISIBLE  # noqa: F401
from .words_lvnar import word_spans  # noqa: F401


class LvnarPreTrainedModel(SafeLoadingMixin, PreTrainedModel):
    config_class = LvnarConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["LvnarLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # `nn.init` alone: transformers 5 makes it skip what a checkpoint has already filled.
        if isinstance(module, LvnarGaussianHead):
            # Prior and posterior begin nearly equal; else the first KL is hundreds of nats a position.
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, LvnarLengthTransform):
            nn.init.zeros_(module.log_sigma)


class LvnarForConditionalGeneration(LvnarPreTrainedModel, LvnarGenerationMixin, GenerationMixin):
    """Prior, approximate posterior, length predictor and decoder, with the loss and `generate`.

    Source and target share one embedding if the vocabulary is joint. A tied output projection is that very module,
    not a second parameter that has to be tied again after loading.
    """

    accepts_loss_kwargs = False
    can_search = True
    source_embedding: nn.Module

    def __init__(self, config: LvnarConfig):
        super().__init__(config)
        self.source_embedding = LvnarEmbedding(config.vocab_size, config.hidden_size)
        if config.target_vocab_size is not None:
            self.target_embedding = LvnarEmbedding(config.decoder_vocab_size, config.hidden_size)
        if not config.tie_word_embeddings:
            self.output_proj = LvnarOutputProjection(config.hidden_size, config.decoder_vocab_size)
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.prior = LvnarPrior(config)
        self.posterior = LvnarPosterior(config)
        if config.alignment == "length":
            self.length_predictor = LvnarLengthPredictor(config)
        self.decoder = LvnarDecoder(config)
        self.post_init()
        # A fresh object: on the one that transformers derives from the config, own fields do not survive a reload.
        self.generation_config = GenerationConfig(
            **GENERATION_DEFAULTS[config.alignment],
            max_length=config.max_position_embeddings,
            pad_token_id=config.pad_token_id,
            eos_token_id=config.eos_token_id,
        )

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As in transformers, from safetensors alone, refusing weights that are not whole and sound; with calibration.

        Raises:
            ValueError: weights are missing, unknown, not finite, or of another shape (with
                `ignore_mismatched_sizes=True`, the last ones are drawn anew); names them. transformers would take all
                of them. Nothing has been allocated for them by then. Or an index of shards names what it must not.
        """
        folder = args[0] if args else kwargs.get("pretrained_model_name_or_path", "")
        cls._refuse_foreign_shards(folder, kwargs.get("subfolder", ""))
        kwargs.setdefault("use_safetensors", True)
        file = Path(str(folder), "generation_config.json")
        if file.is_file():
            check_generation_fields(file, GENERATION_DEFAULTS["ctc"])
        try:
            model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        except (ImportError, MemoryError, OSError, ValueError):
            raise
        except Exception as error:  # of many kinds, from files of the wrong form
            stored_shapes(sorted(Path(str(folder)).glob("*.safetensors")))  # it names the file
            raise ValueError(f"{folder} does not load: {type(error).__name__}: {error}") from error
        for name, parameter in model.named_parameters():
            is_here = parameter.is_floating_point() and not parameter.is_meta
            if is_here and not is_finite(parameter.detach()):
                raise ValueError(f"The weight {name} has values that are not finite.")
        model.calibration = Calibration.find(folder, getattr(model.config, "_commit_hash", None), kwargs)
        return (model, info) if output_loading_info else model

    @classmethod
    def _load_pretrained_model(
        cls, model: Any, state_dict: Any, checkpoint_files: Any, *args: Any, **kwargs: Any
    ) -> Any:
        # The model has no memory yet. Quantised weights have other shapes, and names beside them.
        if getattr(model.config, "quantization_config", None) is None:
            load_config = args[0] if args and hasattr(args[0], "ignore_mismatched_sizes") else kwargs.get("load_config")
            takes_other_shapes = kwargs.get("ignore_mismatched_sizes", False)
            takes_other_shapes = getattr(load_config, "ignore_mismatched_sizes", takes_other_shapes)
            shapes = stored_shapes(checkpoint_files or []) if state_dict is None else shapes_of(state_dict)
            check_shapes(shapes, shapes_of(model.state_dict()), takes_other_shapes)
        return super()._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.source_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.source_embedding = value

    def get_output_embeddings(self) -> None:
        """None: nothing is left for transformers to tie."""
        return None

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Module:
        """As in transformers, for one joint vocabulary that is also the output projection.

        Raises:
            ValueError: for a model with two vocabularies, or an output projection of its own.
        """
        size = self.config.vocab_size if new_num_tokens is None else new_num_tokens
        if size != self.config.vocab_size and (self.config.target_vocab_size or not self.config.tie_word_embeddings):
            raise ValueError(
                f"The vocabulary cannot be resized from {self.config.vocab_size} to {size}: that is possible with one "
                f"joint vocabulary and a tied output projection alone; here target_vocab_size is "
                f"{self.config.target_vocab_size} and tie_word_embeddings {self.config.tie_word_embeddings}."
            )
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)

    def _refine(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, options: DecodingOptions
    ) -> LvnarGenerateOutput:
        check_evaluation_mode(self)
        max_positions = (2**28 if self.device.type == "cpu" else 2**31) // self.config.decoder_vocab_size
        translate = search if options.search.is_asked else refine
        return translate_in_parts(
            translate, self, input_ids, attention_mask, options, max_positions // options.search.num_candidates
        )

    # The four parts, as training and Algorithm 1 use them (`TranslationParts`), and what follows from them.

    target_positions = target_positions
    likeliest_targets = likeliest_targets

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> EncodedSource:
        """Prior over a source: ids and mask (batch, source_length) to all that later parts need of x."""
        embeddings = self._embed(self.source_embedding, input_ids)
        hidden_states, prior_means, prior_stds = self.prior(embeddings, attention_mask)
        keys_values = self.decoder.stack.project_cross_states(hidden_states)
        carried = self.decoder.state_proj(hidden_states) if self.config.carries_source_states else None
        return EncodedSource(attention_mask, embeddings, hidden_states, prior_means, prior_stds, keys_values, carried)

    def infer_posterior(
        self, source: EncodedSource, target_ids: torch.Tensor, target_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """q(z | x, y): means and standard deviations, each (batch, source_length, latent_dim)."""
        target_embeddings = self._embed(self._target_embedding, target_ids)
        return self.posterior(source.embeddings, source.attention_mask, target_embeddings, target_mask)

    def predict_length(self, source: EncodedSource, latents: torch.Tensor) -> torch.Tensor:
        """p(l_y | z, x): (batch, 2 * max_length_offset + 1) logits over l_y - |x|."""
        return self.length_predictor(latents, source.hidden_states, source.attention_mask)

    def decode(
        self,
        source: EncodedSource,
        latents: torch.Tensor,
        target_mask: torch.Tensor,
        is_shown: torch.Tensor | None = None,
        shown_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """p(y | x, z, l_y), with l_y given by the mask: (batch, target_length, target_vocab_size) logits.

        They are float32 even if the model has 16 bits. With alignment "ctc" the mask is `cell_mask`.

        Args:
            latents: (batch, source_length, latent_dim).
            target_mask: (batch, target_length).
            is_shown: (batch, target_length) bool, positions whose input is a token instead of the latents (glancing).
            shown_ids: (batch, target_length), the tokens.
        """
        shown_embeddings = None
        if shown_ids is not None:
            shown_embeddings = self._target_embedding(shown_ids) * math.sqrt(self.config.hidden_size)
        hidden_states = self.decoder(
            latents,
            source.decoder_keys_values,
            source.attention_mask,
            target_mask,
            source.carried_states,
            is_shown,
            shown_embeddings,
        )
        if self.config.tie_word_embeddings:
            return self._target_embedding(hidden_states, project=True)
        return self.output_proj(hidden_states)

    @property
    def output_weight(self) -> torch.Tensor:
        """Of the projection to the vocabulary, (target_vocab_size, hidden_size); it has no bias."""
        projection: Any = self._target_embedding if self.config.tie_word_embeddings else self.output_proj
        return projection.weight

    @property
    def _target_embedding(self) -> nn.Module:
        return self.source_embedding if self.config.target_vocab_size is None else self.target_embedding

    def _embed(self, embedding: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        """Ids (batch, length) to scaled embeddings with positions, (batch, length, hidden_size)."""
        positions = sinusoidal_positions(ids.shape[1], self.config.hidden_size, ids.device)
        embeddings = embedding(ids) * math.sqrt(self.config.hidden_size)
        return self.embedding_dropout(embeddings + positions.to(embeddings.dtype))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        kl_budget: float = 0.0,
        smoothing: float = 0.0,
        num_items_in_batch: int | torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        glancing_ratio: float = 0.0,
        bigram_weight: float = 0.0,
        own_output_share: float = 0.0,
        prior_share: float = 0.0,
        return_dict: bool | None = None,
        **unused: Any,
    ) -> LvnarOutput | tuple:
        """The objective and its parts (Eq. 5, 9, 10); without labels, one pass from the prior's mean.

        z is drawn from the posterior in training, and in evaluation if a `generator` is given; otherwise it is the
        posterior's mean, and nothing is random.

        Args:
            input_ids: (batch, source_length).
            attention_mask: (batch, source_length), 1 at valid positions; by default, all but padding ids.
            labels: (batch, target_length), -100 at padding.
            kl_budget: b of Eq. 9, nats a source position.
            smoothing: label smoothing, in training alone; in evaluation it is ignored. (Trainer takes every argument
                with "label" in its name for labels.)
            num_items_in_batch: number of target tokens to divide the loss by, where the batch is a piece of a larger
                one; by default, that of this batch.
            generator: where the noise ε of z = μ + σε comes from.
            glancing_ratio: ρ, in training with alignment "ctc": how much of the likeliest alignment the decoder is
                shown, as a share of the cells that it gets wrong (`glanced_cells`).
            bigram_weight: in training with alignment "ctc", the share of the loss of bigrams (`bigram_loss`, times the
                target's tokens) in what else is the likelihood of the target.
            own_output_share: in training, the share of the sentences whose posterior is shown the model's own first
                translation instead of the target (`mix_own_translations`).
            prior_share: in training, the share of the sentences whose latents are drawn from the prior instead of the
                posterior; their bound has no KL.
            unused: what others pass to every model (PEFT: `inputs_embeds`, `decoder_input_ids`): None or False.

        Raises:
            TypeError: for an argument that this model has not.
            ValueError: in training mode without labels; for empty or ill-shaped input, ids out of the vocabulary, masks
                that are not right-padding, too long a source or target, labels without a token, or a length difference
                the model cannot express.
        """
        if wrong := [name for name, value in unused.items() if value is not None and value is not False]:
            raise TypeError(f"forward takes no {', '.join(wrong)}; this model has input_ids, attention_mask, labels.")
        if labels is None and self.training:
            raise ValueError(
                "In training mode forward needs labels. label_smoothing_factor of transformers' Trainer takes them "
                "away: leave it at 0, and let the data collator put `smoothing`, a number, beside the labels. To "
                "translate, call model.eval() first."
            )
        return_dict = return_dict if return_dict is not None else self.config.return_dict
        attention_mask = check_inputs(self.config, input_ids, attention_mask, labels)
        source = self.encode(input_ids, attention_mask)
        if labels is None:
            target_mask, length_logits = self.target_positions(source, source.prior_means)
            output = LvnarOutput(
                logits=self.decode(source, source.prior_means, target_mask),
                prior_means=source.prior_means,
                prior_stds=source.prior_stds,
                length_logits=length_logits,
                encoder_hidden_states=source.hidden_states,
            )
            return output if return_dict else output.to_tuple()

        target_mask = (labels != IGNORED_LABEL).to(attention_mask.dtype)
        target_ids = labels.masked_fill(target_mask == 0, self.config.pad_token_id)
        shown = target_ids, target_mask
        if own_output_share and self.training:
            shown = mix_own_translations(self, source, *shown, own_output_share)
        posterior_means, posterior_stds = self.infer_posterior(source, *shown)
        if prior_share and self.training:
            is_prior = torch.rand(len(labels), 1, 1, device=labels.device) < prior_share
            posterior_means = source.prior_means.where(is_prior, posterior_means)
            posterior_stds = source.prior_stds.where(is_prior, posterior_stds)
        latents = posterior_means
        if self.training or generator is not None:
            noise = torch.empty_like(posterior_stds).normal_(generator=generator)
            latents = latents + posterior_stds * noise
        smoothing = smoothing if self.training else 0.0
        if self.config.alignment == "ctc":
            length_logits = length_loss = length_accuracy = None
            logits, cell_mask = self._decode_cells(source, latents, labels, glancing_ratio if self.training else 0.0)
            nll, smoothed_nll = ctc_nll(logits, labels, cell_mask, self.config.pad_token_id, smoothing)
            if bigram_weight and self.training:
                bigram_losses = bigram_loss(logits, labels, cell_mask, self.config.pad_token_id) * target_mask.sum(-1)
                smoothed_nll = (1 - bigram_weight) * smoothed_nll + bigram_weight * bigram_losses
        else:
            length_logits = self.predict_length(source, latents)
            length_offsets = target_mask.sum(-1) - attention_mask.sum(-1)
            length_loss = length_nll(length_logits, length_offsets)
            length_accuracy = (length_logits.argmax(-1) - self.config.max_length_offset == length_offsets).float()
            logits = self.decode(source, latents, target_mask)
            nll, smoothed_nll = token_nll(logits, labels, smoothing)
        position_kl = gaussian_kl(
            posterior_means, posterior_stds, source.prior_means, source.prior_stds, attention_mask
        )
        kl = position_kl.sum(-1)
        clamped_kl = budgeted_kl(position_kl, kl_budget, attention_mask).sum(-1)
        elbo, loss = -(nll + kl), smoothed_nll + clamped_kl
        if length_loss is not None:
            elbo, loss = elbo - length_loss, loss + length_loss
        num_target_tokens = target_mask.sum()
        normalizer = num_target_tokens if num_items_in_batch is None else num_items_in_batch
        output = LvnarOutput(
            loss=loss.sum() / normalizer,
            logits=logits,
            token_nll=nll,
            kl=kl,
            budgeted_kl=clamped_kl,
            length_nll=length_loss,
            length_accuracy=length_accuracy,
            elbo=elbo,
            num_target_tokens=num_target_tokens,
            prior_means=source.prior_means,
            prior_stds=source.prior_stds,
            posterior_means=posterior_means,
            posterior_stds=posterior_stds,
            length_logits=length_logits,
            encoder_hidden_states=source.hidden_states,
        )
        return output if return_dict else output.to_tuple()

    def _decode_cells(
        self, source: EncodedSource, latents: torch.Tensor, labels: torch.Tensor, glancing_ratio: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the cells, and their mask, in training; with glancing, of a decoder that is shown some cells.

        Which ones, a first pass decides, with the same z and the same dropout, and without gradient.
        """
        cell_mask = ctc_cell_mask(source.attention_mask, self.config.upsampling_ratio)
        if glancing_ratio == 0.0:
            return self.decode(source, latents, cell_mask), cell_mask
        random: Any = torch.cuda if latents.is_cuda else torch.random
        random_state = random.get_rng_state()
        with torch.no_grad():
            logits = self.decode(source, latents, cell_mask)
            alignment = likeliest_alignment(logits, labels, cell_mask, self.config.pad_token_id)
            is_shown = glanced_cells(logits.max(-1).indices, alignment, cell_mask, glancing_ratio)
        torch.clear_autocast_cache()  # it holds weights as a pass without gradient has cast them
        state_after = random.get_rng_state()
        random.set_rng_state(random_state)
        logits = self.decode(source, latents, cell_mask, is_shown, alignment)
        random.set_rng_state(state_after)
        return logits, cell_mask
