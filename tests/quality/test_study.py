"""Ways to train, compared at equal time: what a variant changes, what is scored, and a study that goes on."""

import json
import subprocess

import pytest
import torch
import yaml
from forks import run_forked

from lvnar_hf import LvnarForConditionalGeneration
from training import study
from training.quality import variants
from training.quality.decoding import Refinement
from training.quality.variants import make_initial, score_steps
from training.reports.training_tables import study_table

VARIANTS = {
    "plain": {},
    "wider latents": {"model": {"latent_dim": 16}, "initial": {"redrawn": ["gaussian_head"]}},
    "glancing": {"training": {"initial_glancing_ratio": 0.5, "final_glancing_ratio": 0.5}},
}


@pytest.fixture
def flags(tiny_ctc_repository, sample_texts, tmp_path):
    for name, texts in zip(("en", "de"), sample_texts, strict=True):
        (tmp_path / f"train.{name}").write_text("".join(text + "\n" for text in texts[:60]), "utf-8")
        (tmp_path / f"valid.{name}").write_text("".join(text + "\n" for text in texts[60:80]), "utf-8")
    files = {
        f"{split}_{side}_files": [str(tmp_path / f"{split}.{language}")]
        for split in ("train", "valid")
        for side, language in (("source", "en"), ("target", "de"))
    }
    data = {"source_language": "en", "target_language": "de", "tokenizer_folder": str(tiny_ctc_repository), **files}
    data |= {"cache_folder": str(tmp_path / "cache"), "num_workers": 1}
    recipe = {"data": data, "training": {"max_tokens_per_batch": 600, "learning_rate": 0.01, "warmup_steps": 1}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    (tmp_path / "variants.yaml").write_text(yaml.safe_dump(VARIANTS, sort_keys=False), "utf-8")
    named = {"config": tmp_path / "recipe.yaml", "variants": tmp_path / "variants.yaml", "minutes": 0.02}
    named |= {"initial_model": tiny_ctc_repository, "output_folder": tmp_path / "study", "max_steps": 2}
    return [part for name, value in named.items() for part in (f"--{name}", str(value))]


def test_variants_are_trained_and_scored_and_a_study_goes_on(flags, tmp_path, monkeypatch):
    def run(command: list, check: bool) -> None:
        assert check and (result := run_forked(command[1:])).returncode == 0, result.stderr

    monkeypatch.setattr(subprocess, "run", run)
    first = study.main([*flags, "--only", "plain"])
    assert [run["name"] for run in first["runs"]] == ["plain"] and first["initial"]["num_sentences"] == 20
    file = tmp_path / "study" / "study.json"
    log = (tmp_path / "study" / "plain-seed-1" / "log.jsonl").stat().st_mtime_ns
    result = study.main([*flags, "--only", "plain", "glancing"])
    assert json.loads(file.read_text("utf-8")) == result
    assert (tmp_path / "study" / "plain-seed-1" / "log.jsonl").stat().st_mtime_ns == log  # not trained again
    assert result["runs"][0] == first["runs"][0]
    plain, glancing = result["runs"]
    assert (glancing["name"], glancing["seed"]) == ("glancing", 1) and glancing["valid"]["step"] > 0
    assert len(plain["bleu"]) == len(plain["length_ratio"]) == 3 and 0 < plain["p_value"] <= 1
    assert plain["valid"]["elbo"] != glancing["valid"]["elbo"]
    settings = json.loads((tmp_path / "study" / "glancing-seed-1" / "run.json").read_text("utf-8"))
    assert (settings["final_glancing_ratio"], settings["seed"]) == (0.5, 1)
    table = study_table(tmp_path / "study")
    assert (
        table.count("| plain |") == table.count("| glancing |") == 1
        and "20 validation sentences" in table
        and "| 2 steps |" in table
    )
    last = tmp_path / "study" / "glancing-seed-1" / "checkpoints" / f"step-{glancing['valid']['step']:07d}"
    texts = ((tmp_path / f"valid.{side}").read_text("utf-8").splitlines() for side in ("en", "de"))
    assert score_steps(last, *texts, 2)["bleu"] == glancing["bleu"]
    with pytest.raises(ValueError, match="is a study with another max_steps"):
        study.main([*flags, "--max_steps", "3"])
    (tmp_path / "variants.yaml").write_text("plain: {training: {label_smoothing: 0.2}}", "utf-8")
    with pytest.raises(ValueError, match="another variant of the name plain"):
        study.main(flags)


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ("- plain", "must hold variants"),
        ("", "must hold variants"),
        ("1.5: {}", "must hold variants"),
        ("a: [", "is not YAML"),
        ("a: {trainng: {seed: 2}}", "variant a: unknown sections .'trainng'"),
        ("a: {training: {learning_rat: 2}}", "variant a, section training: unknown keys .'learning_rat'"),
        ("a: {model: {latnet_dim: 2}}", "variant a, section model: unknown keys .'latnet_dim'"),
        ("a: {training: {seed: 2, max_minutes: 1.0}}", "variant a: max_minutes, seed is what a study sets itself"),
        ("a: {training: {prior_share: 1.5}}", "prior_share is 1.5"),
        ("a: {initial: {redrawn: gaussian_head}}", "redrawn is 'gaussian_head'; it must be a list"),
        ("a: {initial: {redrawn: [rnn]}}", "no weight whose name has rnn"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(flags, tmp_path, monkeypatch, variants, message):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("something was trained"))
    (tmp_path / "variants.yaml").write_text(variants, "utf-8")
    with pytest.raises(ValueError, match=message):
        study.main(flags)
    assert not (tmp_path / "study").exists()


def test_other_mistakes(flags, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="has no variant rnn; it has plain, wider latents, glancing"):
        study.main([*flags, "--only", "rnn"])
    with pytest.raises(SystemExit, match="max_steps is 0"):
        study.main([*flags, "--max_steps", "0"])
    with pytest.raises(ValueError, match="max_minutes is 0"):
        study.main([*flags, "--minutes", "0"])

    def fail(command: list, check: bool) -> None:
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(SystemExit, match="the training of 'plain', seed 1, failed"):
        study.main(flags)


@pytest.mark.parametrize(("second", "p_values"), [("Guten Tag, Tom.", (1.0, 1.0)), ("Guten Tag, Maria.", (0.0, 0.9))])
def test_equal_translations_are_no_gain_and_blank_lines_are_left_out(
    tiny_ctc_repository, monkeypatch, second, p_values
):
    def refine(model, tokenizer, texts, max_steps):
        return [Refinement([3], [[3], [4]], ["Guten Tag, Tom.", second], False) for _ in texts]

    monkeypatch.setattr(variants, "refine_texts", refine)
    sources, targets = ["Hello.", " ", "Yes.", *["Hi, Mary."] * 20], ["a", "b", "", *["Guten Tag, Maria."] * 20]
    scores = score_steps(tiny_ctc_repository, sources, targets, 1)
    assert scores["num_sentences"] == 21 and len(scores["bleu"]) == 2
    assert p_values[0] <= scores["p_value"] <= p_values[1]


def test_a_variant_keeps_the_weights_that_it_can(tiny_ctc_repository):
    initial = LvnarForConditionalGeneration.from_pretrained(tiny_ctc_repository)
    known, same = initial.state_dict(), make_initial(initial, VARIANTS["plain"], seed=1).state_dict()
    assert all(torch.equal(weight, same[name]) for name, weight in known.items())
    made, again, other = (make_initial(initial, VARIANTS["wider latents"], seed) for seed in (1, 1, 2))
    assert made.config.latent_dim == 16 and made.decoder.latent_proj.in_features == 16
    drawn = {name for name, weight in made.state_dict().items() if not torch.equal(weight, other.state_dict()[name])}
    assert drawn == {"prior.gaussian_head.weight", "posterior.gaussian_head.weight", "decoder.latent_proj.weight"}
    for name, weight in made.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
        assert name in drawn or "gaussian_head" in name or torch.equal(weight, known[name])
