"""Where a user's own class may stand for one of ours: chosen by name, as an object, or in a config by `_target_`."""

from __future__ import annotations

import inspect
import json
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

T = TypeVar("T")
# What is written to ids, records and checkpoints: a name of ours, or `_target_` with plain arguments.
Stored: TypeAlias = "str | dict[str, Any]"


@dataclass(frozen=True)
class Choices(Generic[T]):
    """The classes among which one argument chooses, and those that a user may write for it.

    Args:
        argument: name of the argument, for messages.
        base: the class that each of them inherits from.
        known: name → class of ours. Each can be made without arguments.

    Example:
        >>> from calendar import Calendar, HTMLCalendar, TextCalendar
        >>> choices = Choices("calendar", Calendar, {"plain": Calendar, "text": TextCalendar})
        >>> type(choices.resolve("text")).__name__
        'TextCalendar'
        >>> choices.resolve({"_target_": "calendar.HTMLCalendar", "firstweekday": 6}).firstweekday
        6
        >>> choices.stored(TextCalendar()), choices.stored(HTMLCalendar(firstweekday=6))
        ('text', {'_target_': 'calendar.HTMLCalendar', 'firstweekday': 6})
    """

    argument: str
    base: type[T]
    known: Mapping[str, type[T]]

    def resolve(self, choice: str | Mapping[str, Any] | T) -> T:
        """The object that a choice names; an object is returned as it is.

        Give it what a user wrote, never what was read from a file: a ``_target_`` imports and runs code.

        Args:
            choice: a name of ours, an object, or a mapping with ``_target_`` (the import path of a class) and the
                arguments of that class, which may have a ``_target_`` of their own.

        Raises:
            ValueError: an unknown name, a class that can't be imported or made, or one without the base class, which
                is refused before it is made.

        Example:
            >>> from calendar import Calendar
            >>> Choices("calendar", Calendar, {"plain": Calendar}).resolve("lunar")
            Traceback (most recent call last):
            ...
            ValueError: Expected argument `calendar` to be one of ('plain',), or a Calendar of your own: ...
        """
        if isinstance(choice, str):
            if choice not in self.known:
                raise self._refusal(repr(choice))
            return self.known[choice]()
        if isinstance(choice, Mapping):
            return self._made(choice)
        if not isinstance(choice, self.base):
            is_class = isinstance(choice, type) and issubclass(choice, self.base)
            raise self._refusal(f"{choice!r}" + (", a class; make an object of it" if is_class else ""))
        return choice

    def stored(self, choice: str | Mapping[str, Any] | T) -> Stored:
        """The plain form of a choice: ours by its name, any other as ``_target_`` with plain arguments.

        The arguments of an object are read from its attributes of the same names. Of a mapping they stay as they are.

        Args:
            choice: as in :meth:`resolve`.

        Raises:
            ValueError: it can't be resolved, its class can't be imported by other processes, an argument is not kept as
                an attribute, or one is not plain (None, number, text, list or mapping of these).

        Example:
            >>> from calendar import Calendar
            >>> class Lunar(Calendar): ...
            >>> Choices("calendar", Calendar, {}).stored(Lunar())
            Traceback (most recent call last):
            ...
            ValueError: Expected argument `calendar` to be of a class that any process can import, ...
        """
        cls = type(self.resolve(choice))
        if isinstance(choice, str):
            return choice
        if isinstance(choice, Mapping):
            target, arguments = choice["_target_"], {key: choice[key] for key in choice if key != "_target_"}
        else:
            target, arguments = self._described(choice)
        defaults = {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}
        for name, ours in self.known.items():
            if cls is ours and {**defaults, **arguments} == defaults:
                return name
        try:
            return {"_target_": target, **json.loads(json.dumps(arguments, allow_nan=False))}
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Expected argument `{self.argument}` to have plain arguments (None, numbers, text, lists or mappings "
                f"of these), since they are stored, but {target} has {arguments} ({error})."
            ) from error

    def _made(self, choice: Mapping[str, Any]) -> T:
        from hydra.errors import InstantiationException
        from hydra.utils import instantiate

        target = choice.get("_target_")
        try:
            cls = pkgutil.resolve_name(str(target))
        except (ImportError, AttributeError, ValueError) as error:
            raise self._refusal(f"`_target_` {target!r}, which can't be imported ({error})") from error
        if not (isinstance(cls, type) and issubclass(cls, self.base)):
            raise self._refusal(f"`_target_` {target!r}, which is no subclass of {self.base.__name__}")
        try:
            made: T = instantiate(dict(choice), _convert_="all")
        except InstantiationException as error:
            raise self._refusal(f"{dict(choice)!r}, which can't be made ({error.__cause__ or error})") from error
        return made

    def _refusal(self, got: str) -> ValueError:
        base = f"{self.base.__module__}.{self.base.__qualname__}"
        return ValueError(
            f"Expected argument `{self.argument}` to be one of {tuple(self.known)}, or a {self.base.__name__} of your "
            f"own: an object of a subclass of {base}, or {{_target_: package.Class}}; but got {got}."
        )

    def _described(self, choice: T) -> tuple[str, dict[str, Any]]:
        """Where the class of an object can be imported from, and the arguments that make an equal object."""
        cls = type(choice)
        path = f"{cls.__module__}.{cls.__qualname__}"
        try:
            importable = cls.__module__ != "__main__" and pkgutil.resolve_name(path) is cls
        except (ImportError, AttributeError, ValueError):
            importable = False
        if not importable:
            raise ValueError(
                f"Expected argument `{self.argument}` to be of a class that any process can import, since its import "
                f"path is stored, but got one of {path}. Define the class at the top of a module of its own, and "
                "import it from there."
            )
        for name, parameter in inspect.signature(cls).parameters.items():
            if not hasattr(choice, name) or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise ValueError(
                    f"Expected argument `{self.argument}` to be an object whose arguments can be stored, but "
                    f"{cls.__name__} does not keep `{name}`. Let its `__init__` name each argument and keep it: "
                    f"self.{name} = {name}."
                )
        return path, {name: getattr(choice, name) for name in inspect.signature(cls).parameters}
