"""Prompts: context templates in TOML, chat templates, token ids."""
