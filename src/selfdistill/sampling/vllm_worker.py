"""Worker extension of vLLM: ``--worker-extension-cls selfdistill.sampling.vllm_worker.WorkerExtension``.

vLLM mixes the class into its worker. It imports nothing else of this package, so a server needs only its source.
"""

from __future__ import annotations

from typing import Any


class WorkerExtension:
    """Loads new weights from a directory."""

    def receive_weights(self, path: str) -> str:
        """Load the directory's weights in place; returns the directory as an acknowledgement."""
        worker: Any = self
        worker.reload_weights(weights_path=path)
        # On a CPU vLLM packs the LM head's weight into a copy. A head tied to the embeddings is not loaded itself, so
        # the copy has to be packed again here.
        for module in worker.model_runner.get_model().modules():
            if type(module).__name__ == "ParallelLMHead":
                module.quant_method.process_weights_after_loading(module)
        return path
