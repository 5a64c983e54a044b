"""LvnarConfig: the paper's sizes, refused combinations, and what is written to config.json."""

import json

import pytest

from lvnar_hf import LvnarConfig, LvnarForConditionalGeneration


def test_defaults_are_the_papers_sizes_for_wmt14():
    config = LvnarConfig()
    assert (config.hidden_size, config.intermediate_size, config.num_attention_heads) == (512, 2048, 8)
    assert (config.num_prior_layers, config.num_decoder_layers) == (6, 3)
    assert (config.num_posterior_encoder_layers, config.num_posterior_decoder_layers) == (3, 3)
    assert (config.latent_dim, config.max_length_offset, config.vocab_size) == (8, 50, 32000)
    assert config.target_vocab_size is None and config.is_encoder_decoder
    assert (config.decoder_vocab_size, LvnarConfig(target_vocab_size=45).decoder_vocab_size) == (config.vocab_size, 45)
    assert "decoder_vocab_size" not in config.to_dict()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": 100, "num_attention_heads": 8}, ("100", "8")),
        ({"hidden_size": 33, "num_attention_heads": 3}, ("33",)),
        ({"max_length_offset": 512}, ("max_length_offset is 512", "512")),
        ({"num_decoder_layers": 0}, ("num_decoder_layers", "0")),
        ({"latent_dim": 2.5}, ("latent_dim", "2.5")),
        ({"dropout": 1.0}, ("dropout", "1.0")),
        ({"vocab_size": 2}, ("unk_token_id is 2", "vocab_size is 2")),
        ({"target_vocab_size": 2}, ("unk_token_id is 2", "target_vocab_size is 2")),
        ({"target_vocab_size": 0}, ("target_vocab_size is 0",)),
        ({"pad_token_id": 1}, ("different ids",)),
        ({"target_vocab_size": 400.5}, ("400.5",)),
        ({"pad_token_id": None}, ("pad_token_id is None",)),
        ({"dropout": None}, ("dropout is None",)),
        ({"num_decoder_layers": True}, ("True",)),
        ({"num_prior_layers": 10**6}, ("num_prior_layers is 1000000",)),
        ({"latent_dim": 10**13}, ("latent_dim 10000000000000",)),
        ({"intermediate_size": 10**19}, ("intermediate_size 10000000000000000000",)),
        ({"dtype": False}, ("dtype is False",)),
        ({"eos_token_id": -1}, ("eos_token_id is -1", "32000")),
    ],
)
def test_impossible_combinations_are_refused_and_named(changes, named):
    with pytest.raises(ValueError) as error:
        LvnarConfig(**changes)
    assert all(text in str(error.value) for text in named), str(error.value)


def test_config_survives_a_reload(tmp_path):
    config = LvnarConfig(target_vocab_size=40000, vocab_size=40000, dropout=0.3, tie_word_embeddings=False)
    config.save_pretrained(tmp_path)
    loaded = LvnarConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == {**config.to_dict(), "transformers_version": loaded.to_dict()["transformers_version"]}
    # The key is in the file for those who load remote code; as an attribute it would make `pipeline` ask for trust.
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["custom_pipelines"]["translation"]["impl"] == "pipeline_lvnar.LvnarTranslationPipeline"
    assert not hasattr(loaded, "custom_pipelines")


def test_parameters_of_the_papers_size_are_counted():
    import torch

    with torch.device("meta"):
        joint = LvnarForConditionalGeneration(LvnarConfig())
        separate = LvnarForConditionalGeneration(LvnarConfig(vocab_size=40000, target_vocab_size=40000))
    # One embedding of 32,000 rows, against two of 40,000; nothing else differs.
    assert separate.num_parameters() - joint.num_parameters() == (80000 - 32000) * 512
