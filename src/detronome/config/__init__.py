"""Configuration: the settings and their defaults, whole-run presets, overrides, TOML."""
