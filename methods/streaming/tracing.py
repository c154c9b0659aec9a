"""A module's forward as a graph, through ``torch.fx``; checks that only raise do not stop it.

A symbolic value cannot answer ``if x.ndim != 4: raise ValueError(..)``. Both answers are tried: where one of them makes
the module raise, a run that gets past the check has given the other, whatever the input. A condition that both answers
get past is a decision about values or shapes, and the module stays opaque.
"""

from __future__ import annotations

import operator
import traceback
from typing import Any, Literal

from torch import fx, nn
from torch.fx.proxy import TraceError

ATTEMPTS = 64
"""Times that a forward is traced (our choice): two for every check."""

_Refused = Literal["refused"]


def trace(module: nn.Module) -> fx.Graph | None:
    """The graph of calls of a module's children and of functions between them; None where there is no single one."""
    found = _Explorer(module).run(())
    return found if isinstance(found, fx.Graph) else None


class _Undecided(Exception):
    """A condition whose answer was not given."""


class _Proxy(fx.Proxy):
    """Tells ``x += y`` from ``x = x + y``: of a tensor, the first changes what other names see too."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Tracer(fx.Tracer):
    """Stops at every child; answers conditions as told."""

    def __init__(self, answers: tuple[bool, ...]) -> None:
        super().__init__()
        self._answers = list(answers)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """See ``torch.fx.Tracer``."""
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """See ``torch.fx.Tracer``."""
        return True

    def to_bool(self, obj: Any) -> bool:
        """See ``torch.fx.Tracer``."""
        if not self._answers:
            raise _Undecided
        return self._answers.pop(0)


class _Explorer:
    def __init__(self, module: nn.Module) -> None:
        self._module, self._left = module, ATTEMPTS

    def run(self, answers: tuple[bool, ...]) -> fx.Graph | _Refused | None:
        if not self._left:
            return None
        self._left -= 1
        try:
            return _Tracer(answers).trace(self._module)
        except _Undecided:
            pass
        except (ValueError, AssertionError) as error:
            return None if _by_tracer(error) else "refused"
        except Exception:  # whatever a forward does that symbolic values cannot
            return None
        # Checks stand as `if wrong: raise` more often than the other way round.
        yes = self.run((*answers, True))
        if yes is None:
            return None
        no = self.run((*answers, False))
        if yes == "refused":
            return no
        return yes if no == "refused" else None


def _by_tracer(error: Exception) -> bool:
    """True if not the module raised this, but the tracer, which cannot go on."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, TraceError) or "fx" in frames[-1].filename.replace("\\", "/").split("/")
