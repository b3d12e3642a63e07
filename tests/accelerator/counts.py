"""Count, on a CPU: flops of each network's forward pass of an image, and forward-equivalents F of each method."""

from __future__ import annotations

from setting import DRY, NETWORKS, arguments, compiled, emit, methods

from llrflow.program.cost import parts, plan


def main(dry: bool) -> None:
    networks, objectives = (DRY, methods(2)) if dry else (NETWORKS, methods(10))
    for name, setting in networks.items():
        for method, objective in objectives.items():
            program = compiled(setting, objective, 2)
            if method == "standard":
                forward = plan(program, 1, timed=False, compiled=False)["forward_flops_per_image"]
            passes = sum(count.total for count in parts(program).values())
            emit(network=name, method=method, passes=passes, forward_flops=forward)


if __name__ == "__main__":
    main(arguments().dry)
