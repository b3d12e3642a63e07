"""`llrflow completion`."""

from __future__ import annotations

import click

PLACES = {
    "bash": ("~/.local/share/bash-completion/completions/llrflow", "open a new shell"),
    "zsh": ("~/.zfunc/_llrflow", "have `fpath+=~/.zfunc` before `compinit` in ~/.zshrc, then open a new shell"),
    "fish": ("~/.config/fish/completions/llrflow.fish", "open a new shell"),
}
"""By shell: where its script belongs, and what to do then."""


@click.command()
@click.argument("shell", type=click.Choice(list(PLACES)))
def completion(shell: str) -> None:
    """Print the script that makes SHELL complete commands, options, run folders and kinds of components.

    Its first lines say where it belongs.

    \b
    Examples:
      source <(llrflow completion bash)
      llrflow completion fish > ~/.config/fish/completions/llrflow.fish
    """
    from click.shell_completion import get_completion_class

    place, then = PLACES[shell]
    made = get_completion_class(shell)
    assert made is not None
    if shell != "zsh":  # whose script must begin with its own `#compdef`
        click.echo(f"# Save as {place} and {then}.")
    click.echo(made(click.get_current_context().find_root().command, {}, "llrflow", "_LLRFLOW_COMPLETE").source())
    if shell == "zsh":
        click.echo(f"# Save as {place}, {then}.")
