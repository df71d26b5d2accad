// The row tile of the ragged matmul kernels: every expert's rows begin at a multiple of it, so that no tile of rows
// holds those of two experts. Host and device code share it.
#pragma once

namespace llmc {

constexpr int ragged_rows_per_tile = 128;

}  // namespace llmc
