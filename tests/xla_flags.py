"""What XLA is told in tests."""

import mmap
from pathlib import Path

import jaxlib

# Tests compile a lot and compute little: unoptimised code compiles in a quarter of the time, and what one test or
# process has compiled the others share.
FLAGS = {
    "xla_backend_optimization_level": "0",
    "xla_cpu_use_fusion_emitters": "false",
    "xla_cpu_parallel_codegen_split_count": "1",  # the other workers have the other cores
    "xla_disable_hlo_passes": "cse_barrier_expander",  # XLA:CPU would undo rematerialisation
    "xla_cpu_collective_call_terminate_timeout_seconds": "86400",
}


def known(flags):
    """Those that the installed XLA knows, by the names in its library: it ends a process that sets another."""
    (library,) = Path(jaxlib.__file__).parent.glob("libjax_common.*")
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as code:
        return {name: value for name, value in flags.items() if code.find(b"\0" + name.encode() + b"\0") >= 0}
