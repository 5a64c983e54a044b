"""How a command ends that cannot go on: one line, in place of Python's traceback, for what its user can mend."""

# Modules that are no requirement of the package, and the extra of pyproject.toml that brings them.
EXTRAS = {
    **dict.fromkeys(["accelerate", "datasets", "filelock", "numpy", "pyarrow", "yaml"], "train"),
    **dict.fromkeys(["sacrebleu", "sentencepiece", "tensorboard"], "train"),
    **dict.fromkeys(["evaluate", "matplotlib"], "eval"),
    **dict.fromkeys(["fugashi", "sacremoses", "unidic_lite"], "ja"),
    **dict.fromkeys(["onnx", "onnxruntime", "onnxscript"], "export"),
    **dict.fromkeys(["fastapi", "fastapi_offline", "prometheus_client", "uvicorn"], "serve"),
    "ctranslate2": "distil",
    "gradio": "app",
    "ray": "ray",
    "Mykytea": "kytea",
}


def explain(error: BaseException, command: str, go_on: str = "give the same command again") -> str | None:
    """The line for Ctrl-C or for a package that is missing; None for any other error.

    Args:
        command: its name.
        go_on: what its user does after Ctrl-C.
    """
    if isinstance(error, KeyboardInterrupt):
        return f"Stopped. To go on, {go_on}."
    module = (getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and module in EXTRAS:
        return f"{command} needs {module}, which is not installed: pip install 'lvnar-hf[{EXTRAS[module]}]'"
    return None
