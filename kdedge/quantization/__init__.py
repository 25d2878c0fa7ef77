"""INT8 as an arithmetic of its own: quantizers on a torch model, and what files store of them."""
