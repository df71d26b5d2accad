// A checkpoint's state.json, changed by someone who knows how its checksum is made.
#pragma once
#include <nlohmann/json.hpp>
#include <string>

#include "llmc/base/files.h"

namespace llmc::test {

template <class Change>
void forge(const std::string& path, const Change& change) {
    nlohmann::json state = nlohmann::json::parse(read_file(path));
    change(state);
    state.erase("checksum");
    const std::string text = state.dump();
    state["checksum"] = hex32(crc32_of(text.data(), text.size()));
    write_file_atomic(path, state.dump());
}

}  // namespace llmc::test
