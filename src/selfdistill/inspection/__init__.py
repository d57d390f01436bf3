"""The credit microscope: what each method rewards and punishes, token by token."""
