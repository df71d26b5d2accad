// The safetensors format of Hugging Face: 8 bytes little-endian header length, a JSON header that names every tensor
// with dtype, shape and byte range, then the raw little-endian data without gaps.
// https://github.com/huggingface/safetensors
#pragma once
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "llmc/base/files.h"
#include "llmc/base/tensor.h"

namespace llmc {

using Metadata = std::map<std::string, std::string>;

struct SafetensorsEntry {
    std::string name;
    DType dtype = DType::f32;
    Shape shape;
    int64_t offset = 0;  // of the first byte, from the start of the file; set by the reader
    int64_t bytes() const { return shape.numel() * size_of(dtype); }
};

// A file mapped read-only. The constructor checks header length, JSON, dtypes (F32, BF16, F64, I32; at most 4
// dimensions), sizes, and that the ranges fill the file without gap or overlap. InputError naming file and tensor
// otherwise.
class SafetensorsFile {
public:
    explicit SafetensorsFile(const std::string& path);

    const std::string& path() const { return file_path; }
    const Metadata& metadata() const { return strings; }                          // "__metadata__"
    const std::vector<SafetensorsEntry>& tensors() const { return entries; }      // in the order of their data
    const SafetensorsEntry* find(const std::string& name) const;                  // nullptr if there is none
    const SafetensorsEntry& at(const std::string& name) const;                    // InputError if there is none
    std::string_view header() const { return file.bytes().substr(0, data_begin); }  // and its length before it
    // The raw data, valid as long as this object; may not be aligned for its type.
    const char* bytes(const SafetensorsEntry& entry) const { return file.data() + entry.offset; }

    // A copy of the values; InputError if the tensor is missing or of another dtype.
    template <class T> std::vector<T> read(const std::string& name) const {
        const SafetensorsEntry& entry = at(name);
        require_dtype(entry, dtype_of<T>::value);
        std::vector<T> values(size_t(entry.shape.numel()));
        if (!values.empty()) std::memcpy(static_cast<void*>(values.data()), bytes(entry), values.size() * sizeof(T));
        return values;
    }

private:
    void require_dtype(const SafetensorsEntry& entry, DType want) const;

    std::string file_path;
    MappedFile file;
    size_t data_begin = 0;
    Metadata strings;
    std::vector<SafetensorsEntry> entries;
    std::unordered_map<std::string, size_t> by_name;
};

// The layout of a file with these tensors: its first bytes, the place of each tensor's data (SafetensorsEntry::offset),
// and its size. Wider types come first, so that every tensor is aligned. RunError if two tensors have the same name.
struct SafetensorsLayout {
    std::string header;
    std::vector<SafetensorsEntry> tensors;  // in the order given
    int64_t bytes = 0;
};
SafetensorsLayout lay_out_safetensors(std::vector<SafetensorsEntry> tensors, const Metadata& metadata);

}  // namespace llmc
