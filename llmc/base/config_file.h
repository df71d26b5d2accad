// Configuration files: one `flag = value` a line, without the flag's dashes.
//
//     # a comment
//     lr = 1e-3                  # another
//     pattern = "4x(attention ffn)"
//
// The value is all of the rest of the line, up to a comment, without the blanks around it; or the text between two
// equal quotes, " or '. A comment begins with a # at the beginning of the line or after a blank. A flag may stand there
// once. There are no sections and no lists.
#pragma once
#include <istream>
#include <string>
#include <vector>

namespace llmc {

struct Setting {
    std::string flag, value;
    int line;
};

// The settings of a file, in its order. InputError with its name and the line for any line that is something else.
std::vector<Setting> read_settings(std::istream& file, const std::string& name);

}  // namespace llmc
