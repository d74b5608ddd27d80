"""`detronome watch`."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from detronome.cli.options import MACHINE_GROUP, Json
from detronome.cli.render import print_json, print_notice

__all__ = ["watch"]

_EXIT_CODES = {"silent": 3, "interrupted": 4}


def watch(
    run: Path = Path("runs"),
    /,
    *,
    once: Annotated[bool, Parameter(negative=())] = False,
    serve: Annotated[bool, Parameter(negative=())] = False,
    port: Annotated[int, MACHINE_GROUP] = 8765,
    host: Annotated[str, MACHINE_GROUP] = "127.0.0.1",
    json: Json = False,
) -> int:
    """Follow a run as it goes on: in the terminal, or on a page. The run is not touched.

    Parameters
    ----------
    run
        Run folder, or a folder of runs: then the newest. One that is not there yet is waited for.
    once
        Print how the run is doing, and end.
    serve
        Show it on a page instead.
    port
        Of the page; 0 picks a free one.
    host
        Address that the page listens at. Whoever can reach it sees the run.
    """
    from detronome import api
    from detronome.report.watch.screen import WatchScreen, print_state

    try:
        if serve:
            from detronome.runtime.web import LOOPBACK

            if host not in LOOPBACK:
                print_notice(f"warning: whoever can reach port {port} of {host} sees this run")

            def tell(url: str) -> None:
                if json:
                    print_json({"url": url, "run": str(run)})
                print_notice(url)

            api.serve_run(run, host=host, port=port, on_ready=tell)
        elif once:
            state = api.run_state(run)
            if json:
                print_json(state.to_record())
            else:
                print_state(state)
            return _EXIT_CODES.get(state.status, 0)
        elif json:
            for state in api.follow_run(run):
                sys.stdout.write(json_format.dumps(state.to_record()) + "\n")
                sys.stdout.flush()
        else:
            with WatchScreen() as screen:
                for state in api.follow_run(run):
                    screen.show(state)
    except KeyboardInterrupt as error:  # how a person ends it; other signals come with their code
        return getattr(error, "exit_code", 0)
    return 0
