"""The model source ``user``: a model that is not registered, named by ``module:factory``.

A record of such a model names the factory; another process imports it again, and says so where it has changed.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import PositiveInt

from harness.contracts import ModelSource, Options, StagedModel
from harness.errors import UsageError
from harness.plan import adopting, loading


class UserOptions(Options):
    """Options of :class:`User`.

    Attributes:
        factory: ``module:factory``; the module has to be importable, which ``snnbench bench`` sees to in its folder.
        T: time steps that the model is tried with.
        stages: globs of module names that are stages, separated by commas; None: they are found.
        version: fingerprint of the factory's file and model; None: whatever it is.
    """

    factory: str
    T: PositiveInt = 4
    stages: str | None = None
    version: str | None = None


class User(ModelSource):
    """What a factory of the user's makes, as stages."""

    name = "user"
    summary = "a model of your own by module:factory, cut into stages where that is possible (see `snnbench bench`)"
    source = "-"
    options: ClassVar[type[UserOptions]] = UserOptions

    _decisions: ClassVar[dict[tuple[UserOptions, tuple[int, ...]], adopting.Decision]] = {}

    def build(self, sample: tuple[int, ...], classes: int) -> StagedModel:
        """See :meth:`ModelSource.build`.

        Raises:
            ValueError: the factory fails, its model does not run on this input, has another number of classes or is
                not the one that was measured before.
        """
        opt: UserOptions = self.opt
        try:
            model = loading.load(opt.factory)
            self._check(model)
            key = opt, sample
            if key not in self._decisions:
                # Tried on a model of its own: the weights of the one that is returned follow from the seed alone.
                with torch.random.fork_rng():
                    self._decisions[key] = adopting.decide(loading.load(opt.factory), sample, opt.T, opt.stages)
        except UsageError as error:
            raise ValueError(str(error)) from error
        decision = self._decisions[key]
        if decision.classes != classes:
            raise ValueError(f"{opt.factory} gives {decision.classes} classes; the data has {classes}")
        return adopting.adopt(model, decision, opt.stages).model

    def decided(self, sample: tuple[int, ...]) -> adopting.Decision | None:
        """What :meth:`build` found out about the model on samples of this shape, or None before it."""
        return self._decisions.get((self.opt, sample))

    def _check(self, model: object) -> None:
        opt: UserOptions = self.opt
        if opt.version is None:
            return
        found = loading.fingerprint(opt.factory, model)  # type: ignore[arg-type]
        if found != opt.version:
            raise ValueError(
                f"{opt.factory} is not what it was: version {found} instead of {opt.version}; run bench on it again"
            )
