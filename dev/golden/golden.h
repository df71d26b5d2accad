// Runs golden files (dev/test/golden/README.md) on the linked backend, through the very classes that training uses: a
// block case through Block, a model through Model, a trajectory through Step.
#pragma once
#include <string>
#include <vector>

#include "llmc/model/precision.h"

namespace llmc {

// One compared tensor. error = max|a - b| / max|b|; absolute where max|b| is below 1e-6 and for final parameters in
// fp32.
struct GoldenLine {
    std::string name;
    double error = 0, tolerance = 0;
    bool ok() const { return error <= tolerance; }  // false for NaN
};

struct GoldenResult {
    std::string kind;     // attention | ffn | ... as the file says
    std::string skipped;  // not empty: why the file was not run
    std::vector<GoldenLine> lines;
    bool ok() const;
};

// precision: fp32 or fp64. threads: 0 takes all. InputError for a file that is damaged, incomplete or contradicts its
// own configuration.
GoldenResult run_golden(const std::string& path, PrecisionMode precision, int threads);

}  // namespace llmc
