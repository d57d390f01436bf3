"""Agents: programs that ask the model through OpenAI's chat API, whatever framework they are written in."""
