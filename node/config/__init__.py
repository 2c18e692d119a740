"""Every setting of a node, in one table: flag over environment over file over default."""

from node.config.loading import Loaded, load, template
from node.config.table import SETTINGS, Config, ConfigError, Origin, Setting

__all__ = [
    "SETTINGS",
    "Config",
    "ConfigError",
    "Loaded",
    "Origin",
    "Setting",
    "load",
    "template",
]
