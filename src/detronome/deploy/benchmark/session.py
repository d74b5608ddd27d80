"""A benchmark from its first form to its last: opened, measured in turn with the others, compared, evaluated."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from detronome.deploy.benchmark.calls import Call
from detronome.deploy.benchmark.difference import difference_of
from detronome.deploy.benchmark.messages import Evaluate, Evaluated, Open, Opened, Output, Outputs, Subject
from detronome.deploy.benchmark.process import FormFailedError, FormProcess
from detronome.deploy.benchmark.records import FormRecord, summarize
from detronome.deploy.benchmark.rounds import Runner, measure_in_turn

__all__ = ["Contender", "Session"]

_ROOM = 3
"""Another form is opened beside the others where so many times the memory of the largest is left."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A form that takes part."""

    name: str
    subject: Subject
    file: Path | None
    """Of a form that was exported for this."""
    what: str = ""
    backend: str = ""
    """These two until it has opened, and says more."""
    precision: str = ""


@dataclass(frozen=True, kw_only=True)
class Session:
    """Measures forms, each in a process of its own.

    Attributes:
        entry: module that such a process runs.
        threads: that each may use.
        logs: folder for what the processes print.
        calls: what is run, by batch size.
        seconds: about how long a form is measured at one batch size.
        compared: positions of the images on which outputs are compared.
        evaluated: positions of the images on which accuracy is measured; none measures none.
        on_begin: is told what is done next.
    """

    entry: str
    threads: int
    logs: Path
    calls: Mapping[int, Sequence[Call]]
    seconds: float
    compared: tuple[int, ...]
    evaluated: tuple[int, ...]
    on_begin: Callable[[str], None] = lambda _: None

    def run(self, contenders: Sequence[Contender]) -> list[FormRecord]:
        """Return a record of each form, in order; the others are compared with the first.

        They are all open at once, so that they can be measured in turn. Where memory has no room for that, they come in
        groups, and the first is measured with each of them.
        """
        records: dict[str, FormRecord] = {}
        waiting = deque(contenders)
        with ExitStack() as stack:
            first: Runner | None = None
            first_outputs: list[Output] | None = None
            while waiting:
                with ExitStack() as group_stack:
                    group = [first] if first is not None else []
                    while waiting and _has_room(group):
                        contender = waiting.popleft()
                        is_first = contender is contenders[0]
                        runner = self._open(contender, stack if is_first else group_stack, records)
                        if runner is not None:
                            group.append(runner)
                            first = runner if is_first else first
                    if group:
                        self._measure(group)
                    for runner in group:
                        if runner is not first or first_outputs is None:
                            outputs = self._finish(runner, first, first_outputs, records)
                            first_outputs = outputs if runner is first else first_outputs
                    if first is not None:
                        first.rounds.clear()
        return [records[contender.name] for contender in contenders]

    def _open(self, contender: Contender, stack: ExitStack, records: dict[str, FormRecord]) -> Runner | None:
        self.on_begin(f"opening {contender.name}")
        record = FormRecord(
            form=contender.name, backend=contender.backend, precision=contender.precision, what=contender.what
        )
        log = self.logs / f"{contender.name}.log"
        process = stack.enter_context(FormProcess(self.entry, threads=self.threads, log=log))
        request = Open(subject=contender.subject, file=contender.file, batch_size=max(self.calls))
        try:
            opened = process.ask(request, Opened)
        except FormFailedError as error:
            process.close()  # its memory is for the others
            records[contender.name] = replace(record, failure=error.why, fix=error.fix)
            return None
        records[contender.name] = replace(
            record,
            backend=opened.backend,
            precision=opened.precision,
            open_s=opened.seconds,
            file_bytes=_bytes_of(contender.file or Path(contender.subject.source)),
        )
        return Runner(name=contender.name, process=process, opened=opened)

    def _measure(self, group: Sequence[Runner]) -> None:
        names = f"{len(group)} forms" if len(group) > 1 else "one form"
        for batch_size, calls in self.calls.items():

            def tell(num_rounds: int, num_calls: int, batch_size: int = batch_size) -> None:
                self.on_begin(f"batch {batch_size}: {names} in turn, {num_rounds} rounds of {num_calls}")

            measure_in_turn(group, calls, batch_size=batch_size, seconds=self.seconds, on_plan=tell)

    def _finish(
        self,
        runner: Runner,
        first: Runner | None,
        first_outputs: Sequence[Output] | None,
        records: dict[str, FormRecord],
    ) -> list[Output] | None:
        """Complete the record of a form that was measured; return what its network says of the compared images."""
        record = records[runner.name]
        other = first if first is not None and runner is not first else None
        batches = tuple(
            summarize(
                rounds,
                other.rounds.get(batch_size) if other is not None else None,
                batch_size=batch_size,
                peak_bytes=runner.peak_bytes[batch_size],
            )
            for batch_size, rounds in runner.rounds.items()
        )
        record = replace(record, batches=batches)
        outputs = None
        try:
            if runner.failure is not None:
                raise runner.failure
            outputs = runner.process.ask(Outputs(images=self.compared), list)
            # Of other categories, scores have nothing to be compared with.
            if first_outputs is not None and other is not None and other.opened.categories == runner.opened.categories:
                record = replace(record, difference=difference_of(first_outputs, outputs))
            if self.evaluated:
                self.on_begin(f"AP of {runner.name} on {len(self.evaluated)} images")
                metrics = runner.process.ask(Evaluate(images=self.evaluated), Evaluated).numbers
                record = replace(record, metrics=dict(metrics))
        except FormFailedError as error:
            record = replace(record, failure=error.why, fix=error.fix)
        records[runner.name] = record
        return outputs


def _bytes_of(file: Path) -> int | None:
    """Return the size of an exported form's files, its weights included; None of a folder."""
    if not file.is_file():
        return None
    return sum(part.stat().st_size for part in {file, file.with_suffix(".bin")} if part.is_file())


def _has_room(group: Sequence[Runner]) -> bool:
    """Return whether another form may be opened beside these; at least two are measured in turn."""
    if len(group) < 2:
        return True
    largest = max(runner.opened.resident_bytes for runner in group)
    return group[-1].opened.available_bytes > _ROOM * largest
