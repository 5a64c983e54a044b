"""`train.py` or `teacher.py` in shards on two CPU processes, for the tests: accelerate shards on accelerators alone.

    accelerate launch --use_fsdp --fsdp_version 2 ... tests/support/fsdp_on_cpu.py train.py --config recipe.yaml

Processes on the CPU are called here what they would be called on GPUs; all that follows is accelerate's own code.
"""

import sys
from importlib import import_module
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import DistributedType

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    script, *arguments = sys.argv[1:]
    state = PartialState(cpu=True)
    assert state.distributed_type == DistributedType.MULTI_CPU
    state.distributed_type = DistributedType.MULTI_GPU
    import_module(f"training.{Path(script).stem}").main(arguments)
