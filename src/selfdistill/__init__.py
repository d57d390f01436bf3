"""On-policy self-distillation: a model that knows the answer in hindsight teaches itself."""

__version__ = "0.1.0"
