"""Any sequence-to-sequence model in CTranslate2's format, if CTranslate2 can do its beam search.

CTranslate2 gets ids for tokens. Its vocabularies are the strings "0", "1", ..., so any tokenizer does, one joint
vocabulary or two, and the only text it sees is ours.
"""

import copy
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from training.distillation.teacher import Teacher

# Model types whose translations the tests compare between the engines.
CONVERTIBLE = ("marian", "t5")
# Settings of a generation config that CTranslate2 is not told, and the values that mean "not used".
UNSUPPORTED_GENERATION = {
    "begin_suppress_tokens": (None,),
    "diversity_penalty": (None, 0.0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "exponential_decay_length_penalty": (None,),
    "forced_bos_token_id": (None,),
    "force_words_ids": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "no_repeat_ngram_size": (None, 0),
    "num_beam_groups": (None, 1),
    "repetition_penalty": (None, 1.0),
    "sequence_bias": (None,),
    "suppress_tokens": (None,),
}


class EngineError(ValueError):
    """An engine that cannot be used here; the message says why and what to do."""


def why_not_ctranslate2(teacher: Teacher) -> str | None:
    """None if CTranslate2 can do this teacher's beam search; else the reason, with what to do."""
    model_type = teacher.model.config.model_type
    if importlib.util.find_spec("ctranslate2") is None:
        return "The engine ctranslate2 is not installed: pip install ctranslate2, or choose --engine transformers."
    if model_type not in CONVERTIBLE:
        return (
            f"The engine ctranslate2 is used for the model types {', '.join(CONVERTIBLE)}, and {teacher.name} is a "
            f"{model_type}: choose --engine transformers."
        )
    config = teacher.model.generation_config
    used = [name for name, off in UNSUPPORTED_GENERATION.items() if getattr(config, name, None) not in off]
    if used:
        return (
            f"The engine ctranslate2 is not given {', '.join(used)} of the generation config of {teacher.name}: choose "
            "--engine transformers."
        )
    return None


class _IdTokenizer:
    """What CTranslate2's loaders ask a tokenizer for, answered in ids."""

    def __init__(self, config: Any):
        self.eos_token, self.pad_token = str(config.eos_token_id), str(config.pad_token_id)
        self.bos_token = self.unk_token = self.pad_token

    def convert_ids_to_tokens(self, token_id: int) -> str:
        return str(token_id)


def convert_to_ctranslate2(
    model: PreTrainedModel, folder: str, quantization: str | None = None, vocabulary_map: Path | None = None
) -> None:
    """Write a model in CTranslate2's format whose tokens are its ids as strings: "0", "1", ...

    With `quantization`, for example "int8", the weights are stored so; else as they are. With `vocabulary_map`, a file
    in CTranslate2's format of these tokens, the model has it for `use_vmap`.

    CTranslate2's own converter of Marian takes the last row of the vocabulary for <pad> and starts decoding from zeros.
    Here the start is the embedding of `decoder_start_token_id`, wherever it is and whatever training made of it.
    """
    from ctranslate2.converters import transformers as converters

    if quantization is not None:
        model = copy.deepcopy(model)  # it is quantised in place
    config = model.config
    loader = converters._MODEL_LOADERS[type(config).__name__]
    tokenizer = _IdTokenizer(config)
    # The loaders write into the configuration.
    config_before = copy.deepcopy(config)
    with torch.no_grad():
        if config.model_type == "marian":
            config.normalize_before, config.normalize_embedding = False, False
            bart_loader = converters.BartLoader()
            spec = bart_loader.get_model_spec(model)
            bart_loader.set_config(spec.config, model, tokenizer)
        else:
            spec = loader.get_model_spec(model)
            loader.set_config(spec.config, model, tokenizer)
            # transformers 5 scales the outputs of any T5 that was not saved with untied embeddings, and ties them all.
            is_scaled = getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
            spec.decoder.scale_outputs = np.float32(config.d_model**-0.5 if is_scaled else 1.0)
    model.config = config_before
    (source_size,) = spec.get_source_vocabulary_size()
    spec.register_source_vocabulary([str(index) for index in range(source_size)])
    spec.register_target_vocabulary([str(index) for index in range(spec.get_target_vocabulary_size())])
    if vocabulary_map is not None:
        spec.register_vocabulary_mapping(str(vocabulary_map))
    spec.validate()
    spec.optimize(quantization=quantization)
    spec.save(folder)
