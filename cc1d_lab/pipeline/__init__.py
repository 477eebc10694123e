"""The pipeline study: S2's program from host to host, with the proposals that `programs` names.

`memory` has where buffers come from, `program` the programs, and `evaluation` is the path from cells to rows.
"""
