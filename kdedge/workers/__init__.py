"""Work in pieces: in this process, or by workers of a Ray cluster. Loads no torch.

`protocol` says what work is, `open` opens the workers, `ray_cluster` has those of Ray.
"""
