"""How help looks: headings, aligned columns, examples to copy; ASCII alone, the same in any terminal, pipe or log."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console, ConsoleOptions
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cyclopts.help import HelpEntry, HelpPanel

__all__ = ["HelpPage", "RootApp", "epilogue"]

_WIDEST = 110
"""Columns of a page; longer lines are hard to read."""
_NAME_COLUMNS = {"command": 10, "parameter": 22}
"""Of all groups on a page, so that their texts begin under each other; what is named longer has its text beneath."""
_INDENT = 2
_GAP = 2
_HEADING = "bold"
_NAME = "cyan"
_ASIDE = "dim"
_CODE = re.compile(r"`([^`]+)`")
_SHORT_TYPES = {"INT": "N", "FLOAT": "NUMBER"}
_MOST_CHOICES = 24
"""Characters of choices that stand in place of a value; longer ones follow the text."""


def epilogue(*examples: tuple[str, str], notes: str = "") -> str:
    """Return the end of a help page: examples as (what for, command), then notes."""
    lines = ["Examples:"]
    for purpose, command in examples:
        lines += [f"  # {purpose}"] if purpose else []
        lines.append(f"  {command}")
    return "\n".join(lines) + (f"\n\n{notes}" if notes else "")


class HelpPage:
    """Draws a help page; cyclopts calls it for the usage, the description, and each group of commands or options."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Print a group: its heading, and names beside what they mean."""
        rows = [(_names(entry), _meaning(entry)) for entry in panel.entries]
        if not rows:
            return
        width = _width(console)
        column = _NAME_COLUMNS[panel.format]
        console.print(Text(f"{panel.title}:", style=_HEADING))
        for name, meaning in rows:
            for line in _row(console, name, meaning, column, width):
                console.print(line, soft_wrap=True)
        console.print()

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        """Print how the command is called."""
        if usage:
            console.print(Text.assemble(("Usage: ", _HEADING), str(usage).strip()), soft_wrap=True)
            console.print()

    def render_description(self, console: Console, options: ConsoleOptions, description: Any) -> None:
        """Print what the command does."""
        text = _plain(description)
        if text:
            _print_paragraphs(console, text)
            console.print()


class RootApp(App):
    """The command line as a whole: the list of commands has a line for each, a command's own page says all."""

    def help_print(
        self,
        tokens: Annotated[Any, Parameter(show=False)] = None,
        *,
        console: Annotated[Any, Parameter(parse=False)] = None,
    ) -> None:
        """Print the page that `tokens` ask for, and its examples in colour."""
        names, apps, _ = self.parse_commands(tokens)
        command = apps[-1]
        console = console or command.console
        line, end = command.help, command.help_epilogue
        if command.default_command is not None:
            command.help = None  # the docstring, which says more than the line of the list
            command.usage = " ".join((self.name[0], *names, "[OPTIONS]", *_arguments(command)))
        command.help_epilogue = ""
        try:
            super().help_print(tokens, console=console)
        finally:
            command.help, command.help_epilogue = line, end
        if end:
            _print_epilogue(console, end)


def _arguments(command: App) -> Iterator[str]:
    """Yield what a command must or may be given: options that it needs, and its arguments by their names."""
    for argument in command.assemble_argument_collection():
        label = argument.name.lstrip("-").upper()
        if argument.field_info.kind is argument.field_info.VAR_POSITIONAL:
            yield f"{label}..." if argument.required else f"[{label}...]"
        elif argument.field_info.is_positional:
            yield label if argument.required else f"[{label}]"
        elif argument.required:
            yield f"{argument.name} {label}"


def _names(entry: HelpEntry) -> str:
    names = list(entry.display_labels_with_metavar)
    if entry.positional_label or not entry.metavar:
        return ", ".join(names)
    name = entry.positive_names[-1] if entry.positive_names else ""
    return ", ".join(names).replace(f"{name} {entry.metavar}", f"{name} {_value(entry)}")


def _value(entry: HelpEntry) -> str:
    """Return what stands for an option's value: its choices, or a word that says more than `STR`."""
    metavar = entry.metavar or ""
    if entry.choices and len("|".join(entry.choices)) <= _MOST_CHOICES:
        return metavar.replace("CHOICE", "|".join(entry.choices))
    name = entry.positive_names[-1].lstrip("-").rpartition("-")[2].upper()
    for kind, word in {**_SHORT_TYPES, "STR": name, "CHOICE": name}.items():
        if metavar.removesuffix("...") == kind:
            return metavar.replace(kind, word)
    return metavar


def _meaning(entry: HelpEntry) -> Text:
    text = _styled(" ".join(_plain(entry.description).split()))
    asides = []
    if entry.choices and (entry.positional_label or len("|".join(entry.choices)) > _MOST_CHOICES):
        asides.append(f"one of {', '.join(entry.choices)}")
    if entry.default is not None and entry.default != "False":
        asides.append(f"default: {'on' if entry.default == 'True' else entry.default}")
    if entry.required and not entry.positional_label:
        asides.append("required")
    if asides:
        text.append(f" [{'; '.join(asides)}]" if text else f"[{'; '.join(asides)}]", style=_ASIDE)
    return text


def _row(console: Console, name: str, meaning: Text, column: int, width: int) -> Iterator[Text]:
    indent = " " * (_INDENT + column + _GAP)
    lines = list(meaning.wrap(console, max(20, width - len(indent)))) or [Text()]
    for line in lines:
        line.rstrip()
    if len(name) > column:
        yield Text.assemble(" " * _INDENT, (name, _NAME))
    else:
        yield Text.assemble(" " * _INDENT, (f"{name:<{column}}", _NAME), " " * _GAP, lines.pop(0))
    yield from (Text.assemble(indent, line) for line in lines)


def _print_epilogue(console: Console, text: str) -> None:
    examples, _, notes = text.partition("\n\n")
    for line in examples.splitlines():
        style = _HEADING if not line.startswith(" ") else _ASIDE if line.startswith("  #") else _NAME
        console.print(Text(line, style=style), soft_wrap=True)
    if notes:
        console.print()
        _print_paragraphs(console, notes)


def _print_paragraphs(console: Console, text: str) -> None:
    for number, paragraph in enumerate(text.split("\n\n")):
        if number:
            console.print()
        for line in _styled(" ".join(paragraph.split())).wrap(console, _width(console)):
            line.rstrip()
            console.print(line, soft_wrap=True)


def _styled(text: str) -> Text:
    """Return a text with what stands in backticks in the colour of names."""
    parts: Iterable[str] = _CODE.split(text)
    return Text.assemble(*((part, _NAME if number % 2 else "") for number, part in enumerate(parts)))


def _plain(renderable: Any) -> str:
    inner = getattr(renderable, "primary_renderable", renderable)
    return inner.plain.strip() if isinstance(inner, Text) else inner.strip() if isinstance(inner, str) else ""


def _width(console: Console) -> int:
    return min(console.width, _WIDEST)
