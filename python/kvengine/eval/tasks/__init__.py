"""The tasks, one family a module. Importing this package registers them all."""

import importlib

FAMILIES = (
    "arithmetic",
    "choice",
    "code",
    "generation",
    "lambada",
    "longbench",
    "needle",
    "ruler",
    "shots",
    "text",
)

for _family in FAMILIES:
    importlib.import_module(f"{__name__}.{_family}")
