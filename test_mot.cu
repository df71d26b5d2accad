// test_mot: compares this build with golden numbers.
//
//     test_mot --golden dev/test/golden/*.safetensors
//
// A line per tensor; the last line counts files. Exit code 0: all fine, 1: a number is off, 2: bad input.
#include <cstdio>

#include "dev/golden/golden.h"
#include "llmc/base/version.h"
#include "llmc/ops/ops.h"
#include "llmc/train/flags.h"

namespace {

struct Options {
    std::vector<std::string> files;
    llmc::PrecisionMode precision = llmc::PrecisionMode::fp32;
    int threads = 0;
};

int run(const Options& options) {
    int passed = 0, failed = 0, skipped = 0;
    for (const std::string& path : options.files) {
        llmc::GoldenResult result = llmc::run_golden(path, options.precision, options.threads);
        if (!result.skipped.empty()) {
            std::printf("%s: skipped: %s\n", path.c_str(), result.skipped.c_str());
            skipped++;
            continue;
        }
        std::printf("%s (%s, %s)\n", path.c_str(), result.kind.c_str(), name_of(options.precision));
        for (const llmc::GoldenLine& line : result.lines)
            std::printf("  %-44s error %8.2e  tolerance %7.1e  %s\n", line.name.c_str(), line.error, line.tolerance,
                        line.ok() ? "ok" : "MISS");
        result.ok() ? passed++ : failed++;
        std::fflush(stdout);
    }
    std::printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed ? 1 : 0;
}

std::string version() {
    llmc::Context ctx({.counting = true});
    return llmc::version_text(llmc::backend_description(ctx));
}

}  // namespace

int main(int argc, char** argv) {
    llmc::hold_standard_streams();
    Options options;
    CLI::App app{
        "Compares this build with golden numbers of the reference implementation (dev/test/golden/README.md)."};
    app.add_option("--golden", options.files, "golden files to run")->required()->check(CLI::ExistingFile);
    llmc::add_word(app, "--precision", options.precision, "fp32 or fp64", {"fp32", "fp64"})
        ->default_str(name_of(options.precision));
    app.add_option("--threads", options.threads, "number of CPU threads; 0: all")
        ->transform(llmc::whole_number(0, 4096))
        ->capture_default_str();
    app.set_version_flag("--version", version);
    return llmc::run_program(app, argc, argv, [&] { return run(options); });
}
