"""Parameters as strict schemas: what they refuse, they refuse in one sentence.

A notebook's parameters cell is plain assignments, so that papermill can override it and a reader can edit it. Papermill
injects a mistyped name without a word, and YAML reads ``1e-3`` as text: schemas made of ``Checked`` refuse both.
"""

import difflib
import inspect
import numbers
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Self

import pydantic

# What IPython itself puts into a fresh notebook's namespace.
_IPYTHON_NAMES = {"In", "Out", "exit", "quit", "open", "get_ipython"}


class ParameterError(ValueError):
    """A parameter is unknown, of the wrong type or out of range."""


def nearest(name: str, known) -> str:
    """The known name that looks most like ``name``."""
    return max(known, key=lambda k: difflib.SequenceMatcher(None, str(name).lower(), k.lower()).ratio())


def shown(value) -> str:
    """A value as it's quoted in a sentence: its ``repr``, and of a long one the beginning."""
    try:
        text = repr(value)
    except Exception:  # such as an integer of more digits than Python writes
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 200 else f"{text[:200]}...{text[-1]}"


def printable(text: str) -> str:
    """A text for any terminal and file: control characters, and what isn't Unicode in a file's name, are escaped."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", lambda found: repr(found[0])[1:-1], text)


def whole(value, least: int = 0) -> bool:
    """Whether it's a whole number from ``least`` on, and not a truth value."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least


def brief(error: Exception | str, width: int = 200) -> str:
    """What somebody else's error says, in one line of at most so many characters; its name if it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= width else f"{text[:width]}..."


def _sentence(error: Mapping, known) -> str:
    """One sentence out of one entry of ``pydantic.ValidationError.errors()``."""
    name, received = ".".join(str(part) for part in error["loc"][:1]), error.get("input")
    match error["type"]:
        case "extra_forbidden":
            return (
                f"unknown parameter {shown(name)} (received {shown(received)}): did you mean {nearest(name, known)!r}?"
            )
        case "value_error":
            return f"{error['ctx']['error']}"
    accepted = error["msg"].removeprefix("Input should be ")
    hint = ""
    if isinstance(received, str) and accepted.endswith("number") and _is_number(received):
        hint = " YAML reads 1e-3 as text, so write 0.001 or 1.0e-3."
    if isinstance(received, str) and accepted.endswith("boolean"):
        hint = " On papermill's command line write -p NAME True or -p NAME False."
    return f"parameter {name!r}: received {shown(received)} ({type(received).__name__}), accepted: {accepted}.{hint}"


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


class Checked(pydantic.BaseModel):
    """Strict, immutable and closed: no type is guessed, no unknown name passes."""

    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    def __init__(self, **values):
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            known = type(self).model_fields
            raise ParameterError(" ".join(_sentence(e, known) for e in error.errors())) from None

    @classmethod
    def read(cls, namespace: dict) -> Self:
        """Read the parameters out of a notebook's ``globals()``.

        Whatever stands there when this is first called was put there by the parameters cell or by papermill, so every
        name must be a parameter. By a later call in the same kernel the notebook has names of its own, and of those
        that came since only the ones that look like a misspelt parameter are refused.

        Raises:
            ParameterError: a name is unknown or a value isn't accepted.
        """
        plain = {name for name, value in namespace.items() if isinstance(value, bool | int | float | str)}
        misspelt = {n for n in plain if difflib.get_close_matches(n.strip("_"), cls.model_fields, 1, 0.85)}
        given = {name for name in namespace if not name.startswith("_")} - (_IPYTHON_NAMES - plain) | misspelt
        values = {n: value for n, value in namespace.items() if n in given and not isinstance(value, ModuleType)}
        first = namespace.get("_parameter_names", {name for name, value in values.items() if not callable(value)})
        parameters = {name: values[name] for name in values if name in {*first, *misspelt, *cls.model_fields}}
        try:
            read = cls(**parameters)
        except ParameterError as error:
            unknown = [name for name in parameters if name not in cls.model_fields]
            hint = f" In a running kernel, `del {', '.join(unknown)}` as well." if unknown else ""
            raise ParameterError(f"{error}{hint}") from None
        namespace["_parameter_names"] = first
        return read

    @classmethod
    def parse(cls, name: str, text: str) -> bool | int | float | str:
        """A value from a command line, by the parameter's own type; the text itself where it can't be one."""
        kind = cls.model_fields[name].annotation if name in cls.model_fields else str
        if kind is bool:
            return {"true": True, "false": False}.get(text.lower(), text)
        if kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                return text
        return text

    def arguments(self, function) -> dict:
        """The parameters that a function takes by name: ``models.cct(shape, classes, **p.arguments(models.cct))``."""
        return {name: getattr(self, name) for name in inspect.signature(function).parameters if hasattr(self, name)}
