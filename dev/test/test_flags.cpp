// What flags and configuration files take for a number or a text, and the sentences for all else.
#include "llmc/base/flags.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <thread>

#include "dev/test/temp_dir.h"
#include "llmc/base/config_file.h"
#include "llmc/base/files.h"

namespace llmc::test {
namespace {

// What CLI11 gets to convert, or the refusal.
std::string taken(const CLI::Validator& transform, std::string text) {
    const std::string refusal = transform(text);
    return refusal.empty() ? text : refusal;
}

TEST(Numbers, WholeOnesAreDecimal) {
    const CLI::Validator from_1 = whole_number(1, 4096), any = whole_number(INT64_MIN, INT64_MAX);
    EXPECT_EQ(taken(from_1, "12"), "12");
    EXPECT_EQ(taken(from_1, "+12"), "12");
    EXPECT_EQ(taken(from_1, "010"), "10");  // not 8
    EXPECT_EQ(taken(any, "-0007"), "-7");
    EXPECT_EQ(taken(any, "9223372036854775807"), "9223372036854775807");
    EXPECT_EQ(taken(from_1, "0"), "0 is too small, the least is 1");
    EXPECT_EQ(taken(from_1, "4097"), "4097 is too large, the most is 4096");
    EXPECT_EQ(taken(from_1, "18446744073709551617"), "18446744073709551617 is too large, the most is 4096");
    EXPECT_EQ(taken(from_1, "-18446744073709551617"), "-18446744073709551617 is too small, the least is 1");
    for (const char* text : {"1.5", "1e3", "-1e400", "12.", "inf", "nan"})
        EXPECT_EQ(taken(any, text), str('"', text, "\" is not a whole number"));
    for (const char* text : {"", " ", "+", "-", "+-5", "++5", "0x10", "1,000", "1 2", "12a", "[3]", "ten"})
        EXPECT_EQ(taken(any, text), str('"', text, "\" is not a number"));
}

TEST(Numbers, RealOnesAreDecimalAndFinite) {
    const CLI::Validator share = real_number(0, 1);
    for (const char* text : {"0", "1", "0.25", ".5", "1e-3", "+1e-3", "00.5"}) EXPECT_EQ(taken(share, text), text);
    EXPECT_EQ(taken(share, "-0.5"), "-0.5 is too small, the least is 0");
    EXPECT_EQ(taken(share, "1.5"), "1.5 is too large, the most is 1");
    EXPECT_EQ(taken(share, "inf"), "inf is too large, the most is 1");
    EXPECT_EQ(taken(share, "1e999"), "1e999 is too large or too small for a number");
    for (const char* text : {"", "0,5", "+-1", "0x1", "nan", "-nan", "1e", "[0.5]", "0.5 0.5", "0.5f"})
        EXPECT_EQ(taken(share, text), str('"', text, "\" is not a number"));
}

class ConfigFile : public testing::Test {
protected:
    // "flag=value|..." or the refusal of a file called c.
    std::string read(const std::string& text) const {
        std::istringstream file(text);
        std::string all;
        try {
            for (const Setting& s : read_settings(file, "c")) all += (all.empty() ? "" : "|") + s.flag + "=" + s.value;
        } catch (const InputError& error) {
            return error.what();
        }
        return all;
    }
    TempDir dir;
};

TEST_F(ConfigFile, AValueIsTheRestOfTheLineOrOneQuotedText) {
    EXPECT_EQ(read("lr = 1e-3\nsteps=5  # few\r\n\n  # nothing\n\theads\t=\t2\t"), "lr=1e-3|steps=5|heads=2");
    EXPECT_EQ(read("a = \"x # y\" # z\nb = 'it\"s'\nc = \"\""), "a=x # y|b=it\"s|c=");
    EXPECT_EQ(read("lr = 0,0005\ngroup_sizes = 8, 16\npattern = 2x(a b) c"),
              "lr=0,0005|group-sizes=8, 16|pattern=2x(a b) c");
    EXPECT_EQ(read("\xEF\xBB\xBFlr = 1"), "lr=1");
    EXPECT_EQ(read("data = a=b#c\nlr = 1\t# one"), "data=a=b#c|lr=1");  // no name is cut
    EXPECT_EQ(read(""), "");
}

TEST_F(ConfigFile, AnythingElseIsRefusedByLine) {
    EXPECT_EQ(read("lr = 1\n\nlr = 2"), "c:3: lr is set in line 1 already");
    EXPECT_EQ(read("d_model = 1\nd-model = 1"), "c:2: d-model is set in line 1 already");
    EXPECT_EQ(read("lr"), "c:1: this is not `flag = value`: lr");
    EXPECT_EQ(read("[train]\nlr = 1"), "c:1: this is not `flag = value`: [train]");
    EXPECT_EQ(read("= 3"), "c:1: this is not `flag = value`: = 3");
    EXPECT_EQ(read("learning rate = 3"), "c:1: this is not `flag = value`: learning rate = 3");
    EXPECT_EQ(read("--lr = 3"), "c:1: flags have no dashes before them here: --lr");
    EXPECT_EQ(read("a = \"b"), "c:1: a quote is not closed: \"b");
    EXPECT_EQ(read("a = \"b\" c"), "c:1: there is more after the quoted value: c");
    EXPECT_EQ(read("a ="), "c:1: a has no value: give one, or \"\" for an empty text");
    EXPECT_EQ(read("a = # b"), "c:1: a has no value: give one, or \"\" for an empty text");
    EXPECT_TRUE(read("a = 1\n\xff\xfe"
                     "b = 2")
                    .starts_with("c:2: this is not"));
}

TEST_F(ConfigFile, LongerOnesAreNone) {
    EXPECT_EQ(read("lr = 1\n" + std::string((1 << 20) - 7, '\n')), "lr=1");
    EXPECT_EQ(read("lr = 1\n" + std::string((1 << 20) - 6, '\n')),
              "c has more than 1 MiB: it is no configuration file");
    std::ifstream endless("/dev/zero");
    EXPECT_THROW(read_settings(endless, "c"), InputError);
}

// The sentence of a whole program for arguments after its name, or "" if it takes them.
struct Program {
    double lr = 1;
    int64_t steps = 1;
    std::vector<std::string> texts;
    CLI::App app;

    Program() {
        app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
        app.add_option("--lr", lr)->transform(real_number(0, 10));
        app.add_option("--steps", steps)->transform(whole_number(0, 100));
        app.add_option("--text", texts)->take_all()->allow_extra_args(false);
        app.set_config("--config");
        app.config_formatter(std::make_shared<ConfigReader>(app));
    }
    std::string parse(const std::string& arguments) {
        try {
            app.parse(arguments);
        } catch (const std::exception& error) {
            return error.what();
        }
        return "";
    }
};

TEST_F(ConfigFile, AProgramTakesItsFlags) {
    const std::string path = dir / "c.toml";
    write_file_atomic(path, "lr = 0.5\nsteps = 010\n");
    Program from_file, over_file, twice;
    EXPECT_EQ(from_file.parse("--config " + path), "");
    EXPECT_EQ(from_file.lr, 0.5);
    EXPECT_EQ(from_file.steps, 10);
    EXPECT_EQ(over_file.parse("--lr 2 --config " + path), "");
    EXPECT_EQ(over_file.lr, 2);
    EXPECT_EQ(twice.parse("--config " + path + " --config " + path),
              "--config is given twice: put all flags into one file");

    write_file_atomic(path, "# none\nlrr = 0.5\n");
    EXPECT_EQ(Program().parse("--config " + path), path + ":2: there is no flag --lrr; did you mean --lr?");
    write_file_atomic(path, "config = other.toml\n");
    EXPECT_EQ(Program().parse("--config " + path), path + ":1: a file cannot set --config");
}

TEST(Flags, AnUnknownOneNamesItsNeighbour) {
    const Program program;
    EXPECT_EQ(no_such_flag(program.app, "--lrr"), "there is no flag --lrr; did you mean --lr?");
    EXPECT_EQ(no_such_flag(program.app, "-steps"), "there is no flag -steps; did you mean --steps?");
    EXPECT_EQ(no_such_flag(program.app, "--stesp"), "there is no flag --stesp; did you mean --steps?");
    EXPECT_EQ(no_such_flag(program.app, "--xy"), "there is no flag --xy");  // as far from --lr as from anything
    EXPECT_EQ(no_such_flag(program.app, "--entirely-else"), "there is no flag --entirely-else");
}

TEST(Flags, ATextInBracketsIsAText) {
    Program program;
    EXPECT_EQ(program.parse("--text \"[INST] a, b [/INST]\" --text [c]"), "");
    EXPECT_EQ(program.texts, (std::vector<std::string>{"[INST] a, b [/INST]", "[c]"}));
}

// As the shell's <(...) makes one.
TEST_F(ConfigFile, MayBeAPipe) {
    const std::string pipe = dir / "pipe";
    ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
    std::thread writer([&] { std::ofstream(pipe) << "lr = 0.5\nsteps = 7\n"; });
    Program program;
    EXPECT_EQ(program.parse("--config " + pipe), "");
    writer.join();
    EXPECT_EQ(program.lr, 0.5);
    EXPECT_EQ(program.steps, 7);
}

}  // namespace
}  // namespace llmc::test
