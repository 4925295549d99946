"""Starting a run on this machine, whichever way its options ask for."""

from __future__ import annotations

from suture.launch.options.options import AskedOptions


def start(options: AskedOptions) -> None:
    """Trains: unsplit, all roles in this process, or one server and the clients as processes.

    Raises:
        SutureError: the run could not start, or stopped.
        SystemExit: a rank failed; it has said why.
    """
    if options.unsplit:
        from suture.launch.roles.unsplit import run_unsplit

        run_unsplit(options)
    elif options.exchange == "local":
        from suture.launch.roles.one_process import run_in_one_process

        run_in_one_process(options)
    else:
        from suture.launch.start.agent import start_ranks

        start_ranks(options)
