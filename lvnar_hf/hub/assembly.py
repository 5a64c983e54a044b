"""A model repository put together from a model folder."""

import json
import re
import shutil
import tempfile
from pathlib import Path

from lvnar_hf.confidence_lvnar import FILE as CALIBRATION_FILE
from lvnar_hf.engines.graph import FILES as ONNX_FILES
from lvnar_hf.engines.search import CELL_FILES
from lvnar_hf.engines.shortlist import FILE as SHORTLIST_FILE
from lvnar_hf.hub.checks import (
    PACKAGE_FOLDER,
    SHARDS_INDEX,
    TRAVELLING_MODULES,
    WEIGHTS,
    check_repository,
    list_files,
    read_json_object,
    refuse_links,
    weight_files,
)
from lvnar_hf.tokenization_lvnar import LvnarTokenizer
from lvnar_hf.trust_lvnar import CONFIG_AUTO_MAP, CUSTOM_PIPELINES, TOKENIZER_AUTO_MAP


def assemble(
    model_folder: str | Path, output_folder: str | Path, overwrite: bool = False, repo_id: str | None = None
) -> Path:
    """Put a model repository together: weights, configuration, tokenizer, modules of this package, card, results.

    The folder appears whole or not at all.

    Args:
        model_folder: with weights in safetensors (one file or shards), configuration, tokenizer, the card README.md,
            and perhaps ONNX graphs, a calibration, a shortlist and a folder `results`.
        output_folder: the repository.
        overwrite: replace a repository that is there.
        repo_id: "user/name", which the card then names where it loads the model.

    Returns:
        The output folder.

    Raises:
        FileExistsError: the output folder is not empty, and `overwrite` is not given or it holds something else.
        FileNotFoundError, ValueError: the model folder lacks a file, or is unsound: see `check_repository`; or one of
            its files is a link that leaves it.
    """
    source, output = Path(model_folder), Path(output_folder)
    if output.resolve() == source.resolve():
        raise FileExistsError(f"{output} is the model folder itself; name another output folder.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not overwrite:
            raise FileExistsError(f"{output} exists and is not empty: name another output folder, or overwrite.")
        if not (output / "config.json").is_file():
            raise FileExistsError(f"{output} holds something else than a model; it is not overwritten.")
    if not (source / "README.md").is_file():
        raise FileNotFoundError(f"{source} has no README.md, the model's card.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
        unfinished = Path(temporary) / output.name
        _copy_files(source, unfinished)
        card = (source / "README.md").read_text("utf-8")
        (unfinished / "README.md").write_text(published_card(card, source.name, unfinished, repo_id), "utf-8")
        check_repository(unfinished)
        if output.exists():
            shutil.rmtree(output)
        unfinished.rename(output)
    return output


def published_card(card: str, name: str, repository: Path, repo_id: str | None) -> str:
    """A card as it stands in a repository: it loads the model by its id, and has no link that leads out of it.

    Args:
        card: of a model folder in this project.
        name: of that folder, as the card has it.
        repository: with the other files.
        repo_id: "user/name"; None: not known, what the card loads stays.
    """
    if repo_id is not None:
        card = re.sub(rf"(model_cards|NAMESPACE)/{re.escape(name)}(?![\w-])", repo_id, card)

    def unlink_if_elsewhere(match: re.Match) -> str:
        target = match["target"].partition("#")[0]
        is_here = not target or "://" in target or target.startswith("mailto:") or (repository / target).exists()
        return match[0] if is_here else match["text"]

    return re.sub(r"(?<!!)\[(?P<text>[^\]\n]+)\]\((?P<target>[^)\s]+)\)", unlink_if_elsewhere, card)


def _copy_files(source: Path, output: Path) -> None:
    output.mkdir()
    json_names = ("config.json", "generation_config.json", "tokenizer_config.json")
    refuse_links(source, ["README.md", *json_names, SHARDS_INDEX])  # before they are read
    names = ["README.md", "tokenizer.json", *weight_files(source)]
    optional = [*ONNX_FILES.values(), *CELL_FILES.values(), CALIBRATION_FILE, SHORTLIST_FILE]
    optional += [name for name in LvnarTokenizer.vocab_files_names.values() if name not in names]
    if SHARDS_INDEX not in names and WEIGHTS not in names:
        names.append(SHARDS_INDEX)
    config = {**read_json_object(source / "config.json"), "auto_map": CONFIG_AUTO_MAP}
    config["custom_pipelines"] = CUSTOM_PIPELINES
    tokenizer_config = {**read_json_object(source / "tokenizer_config.json"), "auto_map": TOKENIZER_AUTO_MAP}
    tokenizer_config["tokenizer_class"] = LvnarTokenizer.__name__
    if isinstance(tokenizer_config.get("kytea_model"), str):  # a path on the machine that trained the model
        tokenizer_config["kytea_model"] = Path(tokenizer_config["kytea_model"]).name
        optional.append(tokenizer_config["kytea_model"])
    generation_config = read_json_object(source / "generation_config.json")
    written = {
        "config.json": config,
        "tokenizer_config.json": tokenizer_config,
        "generation_config.json": generation_config,
    }
    names += [name for name in optional if (source / name).is_file()]
    results = [f"results/{name}" for name in list_files(source / "results")]
    refuse_links(source, [*names, *results])
    for name, fields in written.items():
        fields.pop("_name_or_path", None)
        (output / name).write_text(json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
    for name in [*names, *results]:
        if not (source / name).is_file():
            raise FileNotFoundError(f"{source} has no {name}.")
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, output / name)
    for name in TRAVELLING_MODULES:
        shutil.copyfile(PACKAGE_FOLDER / name, output / name)
