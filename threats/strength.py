"""How strong a plug-in is set: by this a site's policy demands a least strength and knows no plug-in by name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Strength:
    """Which parameter of a plug-in is its strength; stands in the plug-in's config as the class variable ``strength``.

    Attributes:
        parameter: the field of the config that a policy bounds.
        stronger: in which direction of that field the plug-in protects more.
        neutral: fields that do not weaken it, whatever their value. Every other field must be as the policy has it:
            with another learning rate, say, a defence can be on at full strength and do nothing.
    """

    parameter: str
    stronger: Literal["higher", "lower"]
    neutral: frozenset[str] = frozenset()

    def shortfall(self, config: Any, least: Any) -> str:
        """Why ``config`` protects less than ``least`` or differently; empty where it protects at least as much.

        Args:
            config: what a run asks for.
            least: what a policy demands, a config of the same class.
        """
        value, bound = getattr(config, self.parameter), getattr(least, self.parameter)
        enough = value >= bound if self.stronger == "higher" else value <= bound
        if not enough:  # NaN is never enough
            side = "least" if self.stronger == "higher" else "most"
            return f"{self.parameter} must be at {side} {bound:g}, got {value:g}"
        for field in dataclasses.fields(least):
            wanted, got = getattr(least, field.name), getattr(config, field.name)
            if field.name not in (self.parameter, *self.neutral) and wanted != got:
                return f"{field.name} must be {wanted}, got {got}"
        return ""
