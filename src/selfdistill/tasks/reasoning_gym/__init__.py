"""The generators of the package ``reasoning-gym``: their questions, and their own scorers as the verifier."""
