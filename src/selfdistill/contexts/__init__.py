"""What a model is shown: TOML templates, chat templates, token ids."""
