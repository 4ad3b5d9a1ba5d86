"""Running a task again in the client's own process, under a debugger."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cluster.client.core import ClientCore
from cluster.client.future import Future
from cluster.client.operations import Operation, Raised
from cluster.errors import ClusterError
from cluster.wire.payload import loads

if TYPE_CHECKING:
    import pdb

__all__ = ["Debugging"]


class Debugging(ClientCore):
    """The part of `Client` that brings a task here."""

    def debug(self, future: Future, *, debugger: pdb.Pdb | None = None) -> Any:
        """Run a future's task again in this process, under pdb: function and inputs are brought here.

        Where it raises, pdb opens at the place (post mortem), and the exception is raised when you leave it; else its
        value is returned. The task may have failed, or not; it must not have been released. `debugger` is one of your
        own. Inputs that the cluster no longer has are computed again there.

        Raises ClusterError if the scheduler cannot say what the task was made of.
        """
        self._check_own(future)
        # Loaded here: half a megabyte that few clients need.
        return self._complete(self._debugging(future, debugger or import_module("pdb").Pdb()))

    def recreate_error_locally(self, future: Future) -> Any:
        """As `debug`, without the debugger: what the task raised is raised here, with a traceback whose frames live."""
        self._check_own(future)
        return self._complete(self._debugging(future, None))

    def _debugging(self, future: Future, debugger: pdb.Pdb | None) -> Operation[Any]:
        call = yield from self._recipe(future)
        try:
            return call()
        except Exception as error:
            if debugger is not None:
                debugger.reset()
                debugger.interaction(None, _users_frames(error))
            return Raised(error)

    def _recipe(self, future: Future) -> Operation[Callable[[], Any]]:
        """The task as something to call here."""
        try:
            recipe = yield from self._ask("recipe", future._wanted())
        except ClusterError as error:
            raise ClusterError(f"{future.key} cannot be run here: {error}") from error
        sources = [self._bind_future((*source, -1, None)) for source in recipe["inputs"]]
        values = yield from self._results.values([source.number for source in sources], None)
        if isinstance(values, Raised):
            # An input failed, so this task never ran: what it would have been given is what went wrong.
            return partial(_raise, values.error)
        function = loads(recipe["function"], bind_future=self._bind_future)
        call = loads(recipe["arguments"], inputs=values, bind_future=self._bind_future)
        positional, keywords = call if recipe["keywords"] else (call, {})
        return partial(function, *positional, **keywords)


def _raise(error: BaseException) -> Any:
    raise error


def _users_frames(error: BaseException) -> Any:
    """The traceback without the frames of this file."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None and traceback.tb_frame.f_code.co_filename == __file__:
        traceback = traceback.tb_next
    return traceback
