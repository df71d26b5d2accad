// What bad input is answered with.
#pragma once
#include <string>

#include "llmc/base/errors.h"

namespace llmc::test {

// The sentence of the InputError that f() throws; "" if it throws none.
template <class F>
std::string refusal(F&& f) {
    try {
        f();
    } catch (const InputError& error) {
        return error.what();
    }
    return "";
}

}  // namespace llmc::test
