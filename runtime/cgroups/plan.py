"""A change of limits as data: which file of which controller gets which text, and its undo."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.cgroups.resources import DeviceLimit, Resources


@dataclass(frozen=True, slots=True)
class Setting:
    """One write. `choices` are (file, text), the preferred first: kernels name files differently.

    `neutral` is set for files with a line per device: what takes that line away again.
    """

    controller: str
    field: str  # the spec's name, for messages
    choices: tuple[tuple[str, str], ...]
    neutral: str | None = None

    def describe(self) -> str:
        file, text = self.choices[0]
        return f"{self.field}: {text} > {file}"

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(file for file, _ in self.choices)


@dataclass(frozen=True, slots=True)
class Change:
    """What a plan is made from: the wish, what the kernel has now, and both merged."""

    wish: Resources
    now: Resources
    then: Resources

    @classmethod
    def of(cls, wish: Resources, now: Resources) -> Change:
        return cls(wish, now, now.merged(wish))


def one(controller: str, field: str, file: str, text: int | str) -> Setting:
    return Setting(controller, field, ((file, str(text)),))


def per_device(
    controller: str, field: str, file: str, limit: DeviceLimit, text: str, neutral: str
) -> Setting:
    device = f"{limit.major}:{limit.minor}"
    return Setting(controller, field, ((file, f"{device} {text}"),), f"{device} {neutral}")
