"""The thread that carries gRPC's calls."""

import asyncio

from suture.runtime.grpc.loop import LoopThread


def test_what_has_not_ended_is_ended_with_the_thread():
    """Oracle: the task's own end: one that is left waiting is reported on the terminal when it is collected."""
    thread, ended = LoopThread(), []

    async def wait() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def begin() -> asyncio.Task[None]:
        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        return task

    task = thread.run(begin()).result(timeout=10)
    thread.close()
    assert ended == ["cancelled"] and task.cancelled()
    thread.close()
