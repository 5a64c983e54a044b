"""What a server is started with, and what it takes."""

from dataclasses import dataclass

# Hands the settings to the processes that uvicorn starts.
SETTINGS_VARIABLE = "LVNAR_SERVER_SETTINGS"
# What tells uvicorn that another process would not start either.
STARTUP_FAILURE = 3


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server takes.

    Attributes:
        max_characters: of a request; each text counts as one more.
        max_waiting: requests at once; more are told to come again.
        timeout: seconds of a request.
    """

    max_characters: int = 20_000
    max_waiting: int = 256
    timeout: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_characters", "max_waiting"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not 0 < self.timeout < float("inf"):
            raise ValueError(f"timeout is {self.timeout}; it must be more than 0 seconds.")


@dataclass(frozen=True)
class ServerSettings(Limits):
    """What a server is started with; see `lvnar serve --help`."""

    models: list[str]
    engine: str = "auto"
    num_refinement_steps: int | None = None
    batch_window_ms: float = 2.0
    max_batch_tokens: int = 512
    num_threads: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.batch_window_ms <= 10_000:
            raise ValueError(f"batch_window_ms is {self.batch_window_ms}; it must be from 0 to 10000.")
