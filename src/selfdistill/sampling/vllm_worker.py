"""What runs inside vLLM's workers: ``--worker-extension-cls selfdistill.sampling.vllm_worker.Receiver``.

vLLM mixes the class into its worker. It imports nothing of this package, so that a server needs the source alone.
"""

from __future__ import annotations

from typing import Any


class Receiver:
    """Takes new weights from a directory."""

    def receive_weights(self, path: str) -> str:
        """Load the directory's weights in place; returns the directory, so that the caller knows it was read."""
        worker: Any = self
        worker.reload_weights(weights_path=path)
        # On a CPU vLLM packs the head's weight into a copy; a head that is tied to the embeddings has no weights of
        # its own to load, so nothing packs it again.
        for module in worker.model_runner.get_model().modules():
            if type(module).__name__ == "ParallelLMHead":
                module.quant_method.process_weights_after_loading(module)
        return path
