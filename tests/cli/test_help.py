"""What `--help` says of settings."""

import importlib

from groundup.cli.help import describe, describe_table
from groundup.cli.stages import TABLES
from groundup.recipe import Recipe


def test_help_lists_the_settings_of_the_recipes_own_tables() -> None:
    for name, (room, kind) in TABLES.items():
        annotation = getattr(importlib.import_module(room), kind)
        expected = [row for row in describe(Recipe) if row[0].startswith(f"{name}.")]
        assert list(describe_table(name, annotation)) == expected
