"""Recipes: every one that ships is read by both commands; what is misspelt or of the wrong type is refused."""

import dataclasses
import sys

import pytest
import yaml
from conftest import ROOT

from training.recipe import SECTIONS, parse_recipe
from training.sections import TokenizerArguments

RECIPES = sorted((ROOT / "training" / "configs").glob("*.yaml"))
TOKENIZER_SECTIONS = {name: SECTIONS[name] for name in ("data", "tokenizer", "model")}
TRAINING_SECTIONS = {name: SECTIONS[name] for name in ("data", "model", "training")}
COMMANDS = [
    {name: SECTIONS[name] for name in names}
    for names in (
        ("data", "tokenizer"),
        ("data", "augmentation", "teacher", "teacher_training"),
        ("data", "distillation"),
        ("data", "augmentation", "model", "training"),
        ("data", "augmentation", "model", "finetuning"),
    )
]


@pytest.fixture
def parse(tmp_path):
    """Parse a recipe given as text or as nested dictionaries."""

    def parse(recipe, sections: dict[str, type], *flags: str) -> tuple:
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe), encoding="utf-8")
        return parse_recipe(sections, ["--config", str(path), *flags])

    return parse


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_that_ships_serves_both_commands(path):
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"data", "tokenizer", "model", "training"} <= set(recipe) <= set(SECTIONS)
    parsed = {}
    for sections in COMMANDS:
        parsed |= dict(zip(sections, parse_recipe(sections, ["--config", str(path)]), strict=True))
    for name in recipe:
        for key, value in recipe[name].items():
            given = getattr(parsed[name], key)
            assert given == value and type(given) is type(value), key
    assert parsed["data"].tokenizer_folder
    tokenizer, max_length = parsed["tokenizer"], parsed["data"].max_sentence_length
    sizes = (tokenizer.vocab_size, None if tokenizer.joint else tokenizer.target_vocab_size or tokenizer.vocab_size)
    for stage, model in (("teacher_training", "teacher"), ("training", "model"), ("finetuning", "model")):
        if stage not in recipe:
            continue
        training, config = parsed[stage], parsed[model].to_config(*sizes)
        assert training.output_folder and config.hidden_size == recipe[model]["hidden_size"]
        assert training.max_epochs or training.warmup_steps + training.cooldown_steps <= training.max_steps
        assert training.max_tokens_per_batch >= config.max_position_embeddings >= max_length
        assert tokenizer.max_length == config.max_position_embeddings
        if training.train_on == "distilled":
            assert parsed["data"].distilled_folder and parsed["distillation"].teacher


def test_a_recipe_that_ships_is_found():
    assert {"digits", "tatoeba_en_de"} <= {path.stem for path in RECIPES}


def test_defaults_file_and_flags_in_this_order(parse):
    recipe = {"tokenizer": {"vocab_size": 300, "joint": False}, "model": {"hidden_size": 128}}
    _, tokenizer, model = parse(recipe, TOKENIZER_SECTIONS, "--vocab_size", "400", "--latent_dim", "4")
    assert tokenizer == TokenizerArguments(vocab_size=400, joint=False)
    assert (model.hidden_size, model.latent_dim, model.num_prior_layers) == (128, 4, 6)
    assert parse(recipe, TOKENIZER_SECTIONS, "--joint", "true")[1].joint is True
    assert parse_recipe({"tokenizer": TokenizerArguments}, ["--no_joint"]) == (TokenizerArguments(joint=False),)


def test_lists_and_switches_as_flags(parse):
    recipe = {"data": {"train_source_files": ["a"]}, "training": {"overwrite": True}}
    data, _, training = parse(recipe, TRAINING_SECTIONS, "--train_source_files", "b", "c", "--overwrite", "false")
    assert data.train_source_files == ["b", "c"] and data.train_target_files == [] and training.overwrite is False
    assert parse({}, TRAINING_SECTIONS, "--overwrite")[2].overwrite is True


def test_arguments_come_from_the_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x.py", "--vocab_size", "300"])
    assert parse_recipe({"tokenizer": TokenizerArguments}) == (TokenizerArguments(vocab_size=300),)


@pytest.mark.parametrize("text", ["7e-4", "7.0e-4", "0.0007", "'0.0007'"])
def test_every_way_to_write_a_number(parse, text):
    assert parse(f"training: {{learning_rate: {text}}}", TRAINING_SECTIONS)[2].learning_rate == 7e-4
    assert parse("training: {max_grad_norm: 2}", TRAINING_SECTIONS)[2].max_grad_norm == 2.0


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("", r"recipe.yaml must hold sections of keys and values: data, augmentation, tokenizer, teacher, teacher_tr"),
        ("hidden_size: 3", "must hold sections"),
        ("model:", "must hold sections"),
        ("modle: {hidden_size: 3}", r"unknown sections \['modle'\]; known are \['data', 'augmentation', 'tokenizer'"),
        ("model: {hiden_size: 3}", r"section model: unknown keys \['hiden_size'\]; known are .*'hidden_size'"),
        # A section that the command does not read is checked as well.
        ("tokenizer: {vocabsize: 3}", r"section tokenizer: unknown keys \['vocabsize'\]"),
        ("tokenizer: {vocab_size: many}", "section tokenizer: vocab_size is 'many'; it must be a whole number"),
        ("model: {hidden_size: 64.0}", "section model: hidden_size is 64.0; it must be a whole number"),
        ("model: {hidden_size: '64'}", "hidden_size is '64'; it must be a whole number"),
        ("model: {hidden_size: true}", "hidden_size is True; it must be a whole number"),
        ("model: {dropout: a lot}", "dropout is 'a lot'; it must be a number"),
        ("model: {dropout: false}", "dropout is False; it must be a number"),
        ("model: {dropout: }", "dropout is None; it must be a number"),
        ("model: {tie_word_embeddings: 1}", "tie_word_embeddings is 1; it must be true or false"),
        ("data: {tokenizer_folder: 3}", "tokenizer_folder is 3; it must be text .* or null"),
        ("data: {aspec_parts: [one]}", r"aspec_parts is \['one'\]; it must be a list of whole numbers"),
        ("data: {aspec_parts: [true]}", r"aspec_parts is \[True\]; it must be a list of whole numbers"),
        ("training: {train_on: best}", "train_on is 'best'; it must be raw or distilled"),
        ("training: {mixed_precision: fp8}", "mixed_precision is 'fp8'; it must be no, bf16 or fp16"),
        ("training: {max_epochs: 0}", "max_epochs is 0; it must be at least 1, or null"),
        ("tokenizer: {target_vocab_size: x}", "target_vocab_size is 'x'; it must be a whole number or null"),
        # YAML 1.1 reads a bare no as false.
        ("training: {mixed_precision: no}", "mixed_precision is False; it must be text .in quotes"),
        ("data: {train_source_files: a.txt}", r"train_source_files is 'a.txt'; it must be a list of texts"),
        ("data: {train_source_files: [1]}", r"train_source_files is \[1\]; it must be a list of texts"),
        ("training: {max_steps: 0}", "max_steps is 0; it must be at least 1"),
        ("training: {gradient_accumulation_steps: 0}", "gradient_accumulation_steps is 0; it must be at least 1"),
        ("training: {log_every_steps: 0}", "log_every_steps is 0; it must be at least 1"),
        ("training: {max_tokens_per_batch: 0}", "max_tokens_per_batch is 0; it must be at least 1"),
        ("augmentation: {augment_names: -0.1}", "augment_names is -0.1; it must be 0 .none. or more"),
        ("augmentation: {augmentation_seed: -1}", "augmentation_seed is -1; it must be at least 0"),
        ("training: {keep_last_checkpoints: -1}", "keep_last_checkpoints is -1; it must be at least 0"),
        ("training: {keep_best_checkpoints: -1}", "keep_best_checkpoints is -1; it must be at least 0"),
        ("training: {validate_every_steps: -1}", "validate_every_steps is -1; it must be at least 0"),
        ("training: {max_minutes: 0}", "max_minutes is 0.0; it must be greater than 0, or null"),
        ("training: {max_minutes: .nan}", "max_minutes is nan; it must be greater than 0, or null"),
        ("training: {max_minutes: 5, cooldown_steps: 3}", "cooldown_steps is 3; it must be 0 where .* as a share"),
        ("training: {cooldown_share: 0.1, cooldown_steps: 3}", "cooldown_steps is 3; it must be 0 where"),
        ("training: {validate_every_minutes: 3}", "validate_every_minutes is 3.0; it must be 0 without max_minutes"),
        (
            "training: {max_minutes: 9, validate_every_minutes: 3, validate_every_steps: 3}",
            "validate_every_minutes is 3.0; it must be 0 without max_minutes and with validate_every_steps",
        ),
        ("training: {loading_workers: -1}", "loading_workers is -1; it must be at least 0"),
        ("training: {cooldown_share: 1.5}", "cooldown_share is 1.5; it must be from 0 to 1.0"),
        ("training: {initial_glancing_ratio: 2}", "initial_glancing_ratio is 2.0; it must be from 0 to 1.0"),
        ("training: {final_glancing_ratio: -1}", "final_glancing_ratio is -1.0; it must be from 0 to 1.0"),
        ("training: {final_kl_budget: 2}", "final_kl_budget is 2.0; it must be from 0 to initial_kl_budget, 1.0"),
    ],
)
def test_mistakes_in_a_file_are_refused(parse, recipe, message):
    with pytest.raises(ValueError, match=message):
        parse(recipe, {**TRAINING_SECTIONS, "augmentation": SECTIONS["augmentation"]})


def test_a_choice_that_does_not_exist_is_refused(parse):
    sections = {name: SECTIONS[name] for name in ("data", "distillation")}
    with pytest.raises(ValueError, match="engine is 'fast'; it must be auto, ctranslate2 or transformers"):
        parse("distillation: {engine: fast}", sections)
    with pytest.raises(ValueError, match="on_degenerate is 'mend'; it must be reference, drop or keep"):
        parse({}, sections, "--on_degenerate", "mend")


def test_null_is_a_value_where_it_has_a_meaning(parse):
    recipe = "tokenizer: {target_vocab_size: null}\ndata: {tokenizer_folder: null}"
    data, tokenizer, _ = parse(recipe, TOKENIZER_SECTIONS)
    assert tokenizer.target_vocab_size is None and data.tokenizer_folder is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--hidden_size", "x"], "invalid int value: 'x'"),
        (["--hiden_size", "3"], "unrecognized arguments: --hiden_size 3"),
        (["--hidden", "3"], "unrecognized arguments: --hidden 3"),  # no abbreviations
    ],
)
def test_mistakes_in_flags_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit):
        parse_recipe(TRAINING_SECTIONS, flags)
    assert message in capsys.readouterr().err


def test_a_recipe_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.yaml"):
        parse_recipe(TRAINING_SECTIONS, ["--config", str(tmp_path / "nothing.yaml")])


@pytest.mark.parametrize("sections", [TOKENIZER_SECTIONS, TRAINING_SECTIONS])
def test_help_names_every_flag(sections, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_recipe(sections, ["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for arguments in sections.values():
        for field in dataclasses.fields(arguments):
            assert f"--{field.name}" in shown and field.metadata["help"]
