"""What one row does to the registers, and how that is called; no file here knows a solver or a network.

`schema` says which registers there are, `registers` makes and checks them, `table` puts a plan's rows beside them. The
operation stands in `reference` (plain torch: what it is), in csrc/row behind `cpp`, and in kernels/; `noise` and
`layout` are what the three agree on. `backends` gives them one face, `op` makes a torch operator of it.
"""
