"""`ltx completion`: what shells need to complete lines of `ltx`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args, get_origin

from ltx_pipelines.cli.command import Command
from ltx_pipelines.planning.schema import Option, UsageError

BASH = """_ltx() {
    local words
    words="$(ltx completion words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)"
    COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _ltx ltx
"""
SHELLS = {
    "bash": BASH,
    "zsh": f"autoload -U +X bashcompinit && bashcompinit\n{BASH}",
    "fish": "complete -c ltx -a '(ltx completion words (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'\n",
}
HELP = f"""Usage: ltx completion SHELL

Print what makes a shell complete lines of `ltx`: {", ".join(SHELLS)}. For bash, in ~/.bashrc:

  eval "$(ltx completion bash)"
"""


def completion(line: Sequence[str]) -> None:
    """Print the script of a shell, or the words that may come next on a line."""
    if not line or line[0] in ("--help", "-h"):
        print(HELP, end="")
    elif line[0] == "words":
        print("\n".join(words(line[1:])))
    elif line[0] in SHELLS:
        print(SHELLS[line[0]], end="")
    else:
        raise UsageError(f"{line[0]!r} is no shell we know, expected one of {', '.join(SHELLS)}")


def words(line: Sequence[str]) -> list[str]:
    """Possible last words of a line that is being written."""
    from ltx_pipelines.cli.app import OWN, foreign, load
    from ltx_pipelines.pipeline import pipelines

    if len(line) < 2:
        return [*OWN, *pipelines(), *foreign()]
    command = load(line[0])
    if not isinstance(command, Command):
        return []
    known = {flag: one for one in command.options.values() if not one.hidden for flag in one.spellings}
    if (before := known.get(line[-2])) is not None and (choices := choices_of(before)):
        return choices
    return [flag for flag in known if flag.startswith("--")]


def choices_of(one: Option) -> list[str]:
    """The values of an option that has few."""
    return [str(choice) for kind in one.kinds if get_origin(kind) is Literal for choice in get_args(kind)]
