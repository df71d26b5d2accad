#include "llmc/base/safetensors.h"

#include <algorithm>
#include <bit>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "llmc/base/json_text.h"

namespace llmc {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian and is used as it is");

namespace {

using nlohmann::json;

constexpr uint64_t length_bytes = 8;
constexpr uint64_t largest_header = 100'000'000;  // the format's own limit
constexpr const char* metadata_key = "__metadata__";

json parse_header(const std::string& path, const char* text, size_t size) {
    if (size == 0 || text[0] != '{') input_error(path, " is not a safetensors file: its header does not start with {");
    std::set<std::string> names;
    std::string twice;
    const auto note_names = [&](int depth, json::parse_event_t event, json& value) {
        if (event == json::parse_event_t::key && depth == 1 && !names.insert(value.get<std::string>()).second)
            twice = value.get<std::string>();
        return true;
    };
    const json header = parse_json({text, size}, path + ": the safetensors header", note_names);
    if (!header.is_object()) input_error(path, " is not a safetensors file: its header is not a JSON object");
    if (!twice.empty()) input_error(path, ": tensor ", twice, " is listed twice");
    return header;
}

DType parse_dtype(const std::string& where, const json& value) {
    std::string names;
    for (const DTypeTraits& row : dtype_table) {
        if (value == row.name) return row.type;
        names += str(names.empty() ? "" : &row == std::end(dtype_table) - 1 ? " and " : ", ", row.name);
    }
    input_error(where, " has dtype ", value.dump(), "; ", names, " can be read");
}

int64_t parse_size(const std::string& where, const json& value) {
    if (!value.is_number_unsigned() || value.get<uint64_t>() > uint64_t(INT64_MAX))
        input_error(where, ": ", value.dump(), " is not a size");
    return value.get<int64_t>();
}

Shape parse_shape(const std::string& where, const json& value) {
    if (!value.is_array()) input_error(where, " has no shape");
    if (value.size() > 4) input_error(where, " has ", value.size(), " dimensions; at most 4 can be read");
    Shape shape;
    for (const json& dimension : value) shape.dim[size_t(shape.rank++)] = parse_size(where, dimension);
    return shape;
}

// Bytes that dtype and shape ask for. InputError where the product overflows.
int64_t checked_bytes(const std::string& where, const SafetensorsEntry& entry) {
    int64_t bytes = size_of(entry.dtype);
    for (int i = 0; i < entry.shape.rank; i++)
        if (__builtin_mul_overflow(bytes, entry.shape[i], &bytes))
            input_error(where, " has shape ", entry.shape.text(), ", which is too large for any memory");
    return bytes;
}

// One tensor of the header; data starts at `data_begin` and the file ends at `file_size`.
SafetensorsEntry parse_entry(const std::string& path, const std::string& name, const json& value, int64_t data_begin,
                             int64_t file_size) {
    const std::string where = str(path, ": tensor ", name);
    if (!value.is_object()) input_error(where, " is not described by a JSON object");
    const json missing;
    const auto field = [&](const char* key) -> const json& { return value.contains(key) ? value[key] : missing; };
    SafetensorsEntry entry;
    entry.name = name;
    entry.dtype = parse_dtype(where, field("dtype"));
    entry.shape = parse_shape(where, field("shape"));
    const json& range = field("data_offsets");
    if (!range.is_array() || range.size() != 2) input_error(where, " has no data_offsets [begin, end]");
    int64_t begin = parse_size(where, range[0]), end = parse_size(where, range[1]);
    if (end < begin) input_error(where, " ends at byte ", end, ", before its beginning ", begin);
    if (end > file_size - data_begin)
        input_error(where, " ends at byte ", end, " of the data, but the file has only ", file_size - data_begin,
                    ": it is truncated or damaged");
    if (checked_bytes(where, entry) != end - begin)
        input_error(where, " of dtype ", name_of(entry.dtype), " and shape ", entry.shape.text(), " needs ",
                    checked_bytes(where, entry), " bytes, but its range has ", end - begin);
    entry.offset = data_begin + begin;
    return entry;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path) : file_path(path), file(path) {
    uint64_t header_size = 0;
    if (file.size() < length_bytes)
        input_error(path, " is not a safetensors file: it has only ", file.size(), " bytes");
    std::memcpy(&header_size, file.data(), length_bytes);
    if (header_size > largest_header || header_size > file.size() - length_bytes)
        input_error(path, " is truncated or not a safetensors file: it has ", file.size(),
                    " bytes, but its header says that it takes ", header_size);
    const json header = parse_header(path, file.data() + length_bytes, header_size);
    data_begin = length_bytes + header_size;
    const int64_t file_size = int64_t(file.size());
    for (const auto& [name, value] : header.items()) {
        if (name != metadata_key) {
            entries.push_back(parse_entry(path, name, value, int64_t(data_begin), file_size));
            continue;
        }
        if (!value.is_object()) input_error(path, ": ", metadata_key, " is not a JSON object");
        for (const auto& [key, text] : value.items()) {
            if (!text.is_string()) input_error(path, ": ", metadata_key, " ", key, " is not a string");
            strings[key] = text.get<std::string>();
        }
    }

    // Empty tensors share their offset with the next one: they come first.
    std::sort(entries.begin(), entries.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
        return a.offset != b.offset ? a.offset < b.offset : a.bytes() < b.bytes();
    });
    int64_t end = int64_t(data_begin);
    for (size_t i = 0; i < entries.size(); i++) {
        const SafetensorsEntry& entry = entries[i];
        if (entry.offset < end) input_error(path, ": tensors ", entries[i - 1].name, " and ", entry.name, " overlap");
        if (entry.offset > end)
            input_error(path, ": ", entry.offset - end, " bytes before tensor ", entry.name, " belong to no tensor");
        end = entry.offset + entry.bytes();
        by_name[entry.name] = i;
    }
    if (end != file_size) input_error(path, ": ", file_size - end, " bytes at the end belong to no tensor");
}

const SafetensorsEntry* SafetensorsFile::find(const std::string& name) const {
    auto found = by_name.find(name);
    return found == by_name.end() ? nullptr : &entries[found->second];
}

const SafetensorsEntry& SafetensorsFile::at(const std::string& name) const {
    const SafetensorsEntry* entry = find(name);
    if (!entry) input_error(file_path, " has no tensor ", name);
    return *entry;
}

void SafetensorsFile::require_dtype(const SafetensorsEntry& entry, DType want) const {
    if (entry.dtype != want)
        input_error(file_path, ": tensor ", entry.name, " has dtype ", name_of(entry.dtype), ", expected ",
                    name_of(want));
}

SafetensorsLayout lay_out_safetensors(std::vector<SafetensorsEntry> tensors, const Metadata& metadata) {
    std::vector<size_t> order(tensors.size());
    std::iota(order.begin(), order.end(), size_t(0));
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return size_of(tensors[a].dtype) > size_of(tensors[b].dtype); });

    nlohmann::ordered_json header = nlohmann::ordered_json::object();
    if (!metadata.empty()) header[metadata_key] = metadata;
    int64_t end = 0;
    for (size_t i : order) {
        SafetensorsEntry& tensor = tensors[i];
        if (tensor.name == metadata_key || header.contains(tensor.name))
            run_error("two tensors of one file have the name ", tensor.name);
        tensor.offset = end;
        end += checked_bytes(str("tensor ", tensor.name), tensor);
        std::vector<int64_t> shape(tensor.shape.dim.begin(), tensor.shape.dim.begin() + tensor.shape.rank);
        header[tensor.name] = {
            {"dtype", name_of(tensor.dtype)}, {"shape", shape}, {"data_offsets", {tensor.offset, end}}};
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');  // data starts on a multiple of 8
    const uint64_t header_size = text.size();
    const int64_t data_begin = int64_t(length_bytes + header_size);
    for (SafetensorsEntry& tensor : tensors) tensor.offset += data_begin;
    return {std::string(reinterpret_cast<const char*>(&header_size), length_bytes) + text, tensors, data_begin + end};
}

}  // namespace llmc
