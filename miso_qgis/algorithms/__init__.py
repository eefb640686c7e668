"""Processing algorithms: parameters in, one application call, outputs back."""
