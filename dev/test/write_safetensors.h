// Writes files in the safetensors format, for tests that need some.
#pragma once
#include <functional>

#include "llmc/base/safetensors.h"

namespace llmc::test {

// source puts all bytes of tensor number `index` into the buffer.
inline void write_safetensors(const std::string& path, const std::vector<SafetensorsEntry>& tensors,
                              const Metadata& metadata, const std::function<void(size_t index, char* buffer)>& source) {
    const SafetensorsLayout layout = lay_out_safetensors(tensors, metadata);
    std::string bytes = layout.header;
    bytes.resize(size_t(layout.bytes));
    for (size_t i = 0; i < tensors.size(); i++) source(i, bytes.data() + layout.tensors[i].offset);
    write_file_atomic(path, bytes);
}

}  // namespace llmc::test
