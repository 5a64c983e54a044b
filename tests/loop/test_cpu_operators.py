"""The operators of training on the CPU: what they compute, and where they are used."""

import pytest
import torch
from conftest import make_batch, make_model, tiny_config
from torch.nn.functional import dropout, scaled_dot_product_attention
from transformers import MarianConfig, MarianMTModel

from training.loop import cpu_operators
from training.loop.cpu_operators import FastCpuTraining, byte_dropout, plain_attention


def test_dropout_drops_256ths_and_keeps_the_mean():
    torch.manual_seed(0)
    ones = torch.ones(1000, 1001, requires_grad=True)
    dropped_out = byte_dropout(ones, 0.1)
    (gradient,) = torch.autograd.grad(dropped_out.sum(), ones)
    result = dropped_out.detach()
    dropped = result == 0
    assert dropped.float().mean() == pytest.approx(26 / 256, abs=1e-3)
    assert set(result.unique().tolist()) == {0.0, torch.tensor(256 / 230).item()}
    assert result.mean() == pytest.approx(1.0, abs=2e-3)
    assert torch.equal(gradient, result)
    # Eight neighbours come from one random number: they are dropped independently.
    together = dropped[:, :1000].reshape(-1, 8).float()
    assert torch.corrcoef(together.T).fill_diagonal_(0).abs().max() < 0.02


def test_dropout_of_nearly_everything_and_in_bfloat16():
    torch.manual_seed(0)
    assert (byte_dropout(torch.ones(100_000), 0.999) > 0).float().mean() == pytest.approx(1 / 256, abs=1e-3)
    values = torch.full((100_000,), 3.0, dtype=torch.bfloat16)
    assert set(byte_dropout(values, 0.1).unique().tolist()) == {0.0, float(torch.tensor(3 * 256 / 230).bfloat16())}


def test_dropout_follows_the_seed_and_is_nothing_in_evaluation():
    values = torch.randn(5, 7)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(byte_dropout(values, 0.5))
    assert torch.equal(*results)
    assert byte_dropout(values, 0.5, training=False) is values and byte_dropout(values, 0.0) is values


@pytest.mark.parametrize("mask", ["none", "bool", "float", "causal"])
def test_attention_is_that_of_torch(mask):
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, 2, length, 8, requires_grad=True) for length in (5, 5, 5))
    options: dict = {"is_causal": mask == "causal"}
    if mask in ("bool", "float"):
        seen = torch.arange(5) < torch.tensor([5, 3, 1])[:, None]
        options["attn_mask"] = seen[:, None, None, :]
        if mask == "float":
            options["attn_mask"] = torch.zeros(3, 1, 1, 5).masked_fill(~seen[:, None, None, :], -1e9)
    results = [attend(query, key, value, **options) for attend in (plain_attention, scaled_dot_product_attention)]
    torch.testing.assert_close(*results)
    gradients = [torch.autograd.grad(result.square().sum(), (query, key, value)) for result in results]
    torch.testing.assert_close(*gradients)


def test_only_within_and_only_for_few_keys(monkeypatch):
    calls = []
    for name in ("byte_dropout", "plain_attention"):
        original = getattr(cpu_operators, name)
        monkeypatch.setattr(
            cpu_operators, name, lambda *a, _n=name, _f=original, **k: (calls.append(_n), _f(*a, **k))[1]
        )
    few, many = torch.randn(1, 1, 4, 8), torch.randn(1, 1, cpu_operators.MAX_KEYS + 1, 8)
    dropout(few, 0.1)
    scaled_dot_product_attention(few, few, few)
    assert calls == []
    with FastCpuTraining():
        dropout(few, 0.1)
        scaled_dot_product_attention(few, few, few)
        scaled_dot_product_attention(few, many, many)
    assert calls == ["byte_dropout", "plain_attention"]


def test_a_students_loss_is_the_same_and_its_dropout_another():
    model = make_model(tiny_config(dropout=0.0, alignment="ctc")).train()
    batch = make_batch(model.config, [(6, 9), (4, 3)])

    def loss() -> torch.Tensor:
        torch.manual_seed(1)
        return model(**batch).loss

    plain = loss()
    with FastCpuTraining():
        torch.testing.assert_close(loss(), plain)
        model.embedding_dropout.p = 0.5
        assert loss() != plain


def test_a_teacher_of_transformers_takes_them_too(monkeypatch):
    """Marian calls torch's operators by other ways than this package's model."""
    config = MarianConfig(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_ffn_dim=16,
        decoder_attention_heads=2, encoder_ffn_dim=16, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        dropout=0.0, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    model = MarianMTModel(config).train()
    ids = torch.randint(3, 40, (2, 6))
    expected = model(input_ids=ids, decoder_input_ids=ids, use_cache=False).logits
    calls = []
    original = cpu_operators.plain_attention
    monkeypatch.setattr(cpu_operators, "plain_attention", lambda *a, **k: (calls.append(1), original(*a, **k))[1])
    with FastCpuTraining():
        logits = model(input_ids=ids, decoder_input_ids=ids, use_cache=False).logits
    assert len(calls) == 3  # of the encoder, and two of the decoder
    torch.testing.assert_close(logits, expected)
