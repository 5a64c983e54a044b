"""What the engines beside the PyTorch model share: that which a pipeline and a Trainer ask a model for."""

import torch

from lvnar_hf.generation_lvnar import LvnarGenerationMixin


class LvnarEngine(LvnarGenerationMixin):
    """Translates by `generate`; is no module of PyTorch, and stays where it is.

    Attributes:
        device: where the tensors go that `generate` is given.
    """

    main_input_name = "input_ids"
    training = False
    device: torch.device

    def eval(self) -> "LvnarEngine":
        return self

    def to(self, device: torch.device | str | int | None = None, **kwargs: object) -> "LvnarEngine":
        """Itself.

        Raises:
            ValueError: for another device.
        """
        wanted = self.device if device is None else torch.device(device)
        if wanted.type != self.device.type or wanted.index not in (None, self.device.index):
            raise ValueError(f"{type(self).__name__} is on {self.device} and cannot go to {device}.")
        return self

    def can_generate(self) -> bool:
        return True
