#!/usr/bin/env bash
# Guess:     C = A B^T in float32, all rows of A equal, one thread: all rows of C have the same bits. Each element is
#            the same sum of the same numbers, and nothing but its place in the matrix tells it from the others.
# Version:   oneDNN 3.2 (onednn-cpu-gomp 2023.2.0 of PyPI), dnnl_sgemm, AVX2 kernels. Debian 12's 2.6.3 does the same.
# Behaviour: With 13 rows the last one has other bits than the first 12. With 200 rows it is the last two, and with 145
#            it is row 72 or row 144, depending on whether B is stored transposed. Rows that do not fill a block of the
#            kernel are summed in another order, so a larger batch can change the result of an unchanged row.
# Why it matters: A router may have to choose between two equal tokens (the same first token of two sequences). Where
#            the rows of the two lay in an earlier product decides whether it sees a tie.
#
# Installs into a temporary folder, prints what it sees, and exits with 1 if that is not what stands above.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check onednn-cpu-gomp==2023.2.0 numpy==1.26.4
library=$(find "$folder/venv" -name 'libdnnl.so.3' | head -n 1)

ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1 "$folder/venv/bin/python" - "$library" << 'PYTHON'
import ctypes
import sys

import numpy as np

library = ctypes.CDLL(sys.argv[1])


def other_rows(rows, columns, length, b_transposed):
    """The rows of a product whose left matrix has equal rows, [rows, length], that differ from row 0."""
    random = np.random.default_rng(1)
    a = np.tile(random.uniform(-1, 1, length).astype(np.float32), (rows, 1))
    b = random.uniform(-1, 1, (columns, length)).astype(np.float32)
    if not b_transposed:
        b = np.ascontiguousarray(b.T)
    c = np.empty((rows, columns), np.float32)
    size, real = ctypes.c_int64, ctypes.c_float
    a_at, b_at, c_at = (x.ctypes.data_as(ctypes.c_void_p) for x in (a, b, c))
    status = library.dnnl_sgemm(ctypes.c_char(b"N"), ctypes.c_char(b"T" if b_transposed else b"N"),
                                size(rows), size(columns), size(length), real(1), a_at, size(length),
                                b_at, size(length if b_transposed else columns), real(0), c_at, size(columns))
    assert status == 0
    assert np.allclose(c, c[0], rtol=0, atol=1e-5)  # rounding, no more
    return [row for row in range(rows) if not np.array_equal(c[row], c[0])]


expected = {(12, True): [], (13, True): [12], (145, True): [72], (145, False): [144], (200, True): [198, 199]}
seen = {(rows, b_transposed): other_rows(rows, 16 if b_transposed else 64, 64, b_transposed)
        for rows, b_transposed in expected}
for (rows, b_transposed), others in seen.items():
    stored = "transposed" if b_transposed else "as it is"
    print(f"{rows} equal rows, B {stored}: rows with other bits than row 0: {others}")
sys.exit(seen != expected)
PYTHON
