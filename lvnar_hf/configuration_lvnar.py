"""Architecture of a latent-variable non-autoregressive translation model (Shu et al., 2020).

This module travels to the Hub with the model: it imports nothing but transformers and the standard library.
"""

import copy
from typing import Any

from transformers import GenerationConfig, PretrainedConfig

from .sizes_lvnar import check_sizes
from .trust_lvnar import CUSTOM_PIPELINES

# True in the copy of this module that transformers imports from a model repository.
_RUNS_AS_REMOTE_CODE = __name__.startswith("transformers_modules.")

# Fields that transformers and its companions write into configurations, beside those that the base class lists.
_WRITTEN_BY_OTHERS = (
    *("auto_map", "custom_pipelines", "distributed_config", "model_type", "use_cache"),
    *("attn_implementation", "_attn_implementation", "experts_implementation", "loss_type"),
    *("_name_or_path", "_commit_hash"),
)
# What LvnarConfig's callers and a config.json may ask for: any other name is one of code that transformers would fetch.
_ATTENTION = (None, "eager", "sdpa")


class LvnarConfig(PretrainedConfig):
    """Sizes of the four parts: prior, approximate posterior, length predictor, decoder.

    The defaults are those of the paper for WMT14 En-De. Its ASPEC Ja-En model differs in the vocabularies alone:
    `LvnarConfig(vocab_size=40000, target_vocab_size=40000)`.

    Args:
        vocab_size: rows of the source embedding; of the joint one if `target_vocab_size` is None.
        target_vocab_size: size of a target vocabulary of its own, or None for one joint vocabulary, in which case
            source and target share their embedding.
        tie_word_embeddings: the output projection is the target embedding. If False it has weights of its own.
        hidden_size: width of every layer.
        intermediate_size: width of the feed-forward blocks.
        num_attention_heads: heads of every attention; must divide `hidden_size`.
        num_prior_layers: self-attention layers over the source; their output is the source states that the decoder
            attends to.
        num_posterior_encoder_layers: self-attention layers over the target, in the approximate posterior.
        num_posterior_decoder_layers: layers over the source that attend to the encoded target, in the posterior.
        num_decoder_layers: layers over the target positions.
        latent_dim: dimensions of the latent vector at each source position.
        alignment: how the model says how long a translation is. "length" (the paper): a length predictor, and a
            position for each token. "ctc": no length predictor; the decoder has ⌈upsampling_ratio · |x|⌉ cells, and
            the translation is what is left of them when equal neighbours are merged and blanks removed.
        upsampling_ratio: r, cells a source token, of alignment "ctc"; at least 1.
        blank_penalty: with alignment "ctc", taken from blank's logit where the likeliest cells are chosen: a model that
            leaves words out where it is unsure says more of them. A blank that parts two equal words stays
            (`part_equal_words`). Likelihood and bounds are without it.
        carries_source_states: the states of the source are carried to the decoder's positions beside the latents, as
            Gu and Kong (2021) do; the paper carries the latents alone.
        max_length_offset: with alignment "length", the length predictor chooses `target_length - source_length` in
            [-max_length_offset, max_length_offset].
        max_position_embeddings: longest source and longest target, in tokens, end-of-sentence included.
        dropout: applied to embeddings, attention outputs and feed-forward outputs, and inside the feed-forward blocks.
        attention_dropout: applied to attention weights.
        pad_token_id, eos_token_id, unk_token_id: the same ids on both sides.
        source_language, target_language: codes, for example en and de, or None if they are not known; other ones that
            a caller names are refused.

    Raises:
        ValueError: for sizes that cannot be combined, and for fields that neither this class nor transformers knows;
            the message names them.
    """

    model_type = "lvnar"
    keys_to_ignore_at_inference = ["encoder_hidden_states"]
    attribute_map = {"num_hidden_layers": "num_prior_layers"}

    def __init__(
        self,
        vocab_size: int = 32000,
        target_vocab_size: int | None = None,
        tie_word_embeddings: bool = True,
        hidden_size: int = 512,
        intermediate_size: int = 2048,
        num_attention_heads: int = 8,
        num_prior_layers: int = 6,
        num_posterior_encoder_layers: int = 3,
        num_posterior_decoder_layers: int = 3,
        num_decoder_layers: int = 3,
        latent_dim: int = 8,
        alignment: str = "length",
        upsampling_ratio: float = 2.0,
        blank_penalty: float = 0.0,
        carries_source_states: bool = False,
        max_length_offset: int = 50,
        max_position_embeddings: int = 512,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        pad_token_id: int = 0,
        eos_token_id: int = 1,
        unk_token_id: int = 2,
        is_encoder_decoder: bool = True,
        source_language: str | None = None,
        target_language: str | None = None,
        **kwargs: Any,
    ):
        self.vocab_size = vocab_size
        self.target_vocab_size = target_vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_attention_heads = num_attention_heads
        self.num_prior_layers = num_prior_layers
        self.num_posterior_encoder_layers = num_posterior_encoder_layers
        self.num_posterior_decoder_layers = num_posterior_decoder_layers
        self.num_decoder_layers = num_decoder_layers
        self.latent_dim = latent_dim
        self.alignment = alignment
        self.upsampling_ratio = upsampling_ratio
        self.blank_penalty = blank_penalty
        self.carries_source_states = carries_source_states
        self.max_length_offset = max_length_offset
        self.max_position_embeddings = max_position_embeddings
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.unk_token_id = unk_token_id
        self.source_language = source_language
        self.target_language = target_language
        self._refuse_unknown(kwargs)
        for name in ("attn_implementation", "_attn_implementation"):
            if kwargs.get(name) not in _ATTENTION:
                raise ValueError(f"{name} is {kwargs[name]!r}; it must be eager or sdpa.")
        if kwargs.get("experts_implementation") is not None:  # transformers 5.0 always hands it on
            raise ValueError(
                f"experts_implementation is {kwargs['experts_implementation']!r}; this model has no experts."
            )
        try:
            super().__init__(
                pad_token_id=pad_token_id,
                eos_token_id=eos_token_id,
                tie_word_embeddings=tie_word_embeddings,
                is_encoder_decoder=is_encoder_decoder,
                **kwargs,
            )
        except Exception as error:  # of many kinds, for a field of the wrong type
            raise ValueError(f"The configuration has a field that transformers cannot take: {error}") from error
        if self.dtype is not None and not str(self.dtype).startswith("torch."):
            raise ValueError(f"dtype is {self.dtype!r}; it must be the name of a type of torch.")
        # As an attribute, the key would make `pipeline()` ask for `trust_remote_code` although the package is there.
        # So it is an attribute only where this module itself is remote code, and `to_dict` writes it in any case.
        if _RUNS_AS_REMOTE_CODE:
            self.custom_pipelines = copy.deepcopy(CUSTOM_PIPELINES)  # `pipeline()` writes into it
        elif hasattr(self, "custom_pipelines"):
            del self.custom_pipelines
        booleans = [name for name, default in vars(PretrainedConfig()).items() if type(default) is bool]
        check_sizes(self, booleans)

    @classmethod
    def get_config_dict(cls, name: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers; a file nested too deep raises ValueError."""
        try:
            return super().get_config_dict(name, **kwargs)
        except RecursionError as error:
            raise ValueError(f"config.json of {name} is nested too deep.") from error

    def to_dict(self) -> dict[str, Any]:
        """The configuration as written to config.json, with the key that names the pipeline class."""
        return {**super().to_dict(), "custom_pipelines": copy.deepcopy(CUSTOM_PIPELINES)}

    @property
    def decoder_vocab_size(self) -> int:
        """Tokens that a translation may have: of the target vocabulary, or of the joint one."""
        return self.vocab_size if self.target_vocab_size is None else self.target_vocab_size

    def check_languages(self, source_language: str | None, target_language: str | None) -> None:
        """Refuse a direction that is not the model's; None, and what the configuration does not know, is no direction.

        Raises:
            ValueError: names both.
        """
        given = {"source_language": source_language, "target_language": target_language}
        for name, language in given.items():
            own = getattr(self, name)
            if None not in (language, own) and language != own:
                raise ValueError(
                    f"The {name.replace('_', ' ')} asked for is {language!r}, and this model's is {own!r}: it "
                    f"translates from {self.source_language} to {self.target_language}."
                )

    def _refuse_unknown(self, fields: dict[str, Any]) -> None:
        """Refuse fields that would be kept and mean nothing: misspelt, or of a newer version of this model."""
        known = {*vars(PretrainedConfig()), *GenerationConfig().to_dict(), *self.attribute_map, *_WRITTEN_BY_OTHERS}
        known.update(name for name in dir(PretrainedConfig) if isinstance(getattr(PretrainedConfig, name), property))
        known = {name for name in known if not name.startswith("_")} | set(_WRITTEN_BY_OTHERS)
        unknown = [name for name in sorted(fields) if name not in known or callable(getattr(type(self), name, None))]
        if unknown:
            raise ValueError(
                f"LvnarConfig does not know {', '.join(unknown)}. If the model is newer than this code, bring the code "
                "up to date; else correct the name."
            )
