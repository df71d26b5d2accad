// Any bytes as each message that processes tell each other by TCP. What is read must be written and read alike.
#include <cstdlib>

#include "llmc/comm/messages.h"

namespace {

void require(bool holds) {
    if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace llmc;
    const std::string_view bytes(reinterpret_cast<const char*>(data), size);
    if (const auto hello = read_hello(bytes)) require(read_hello(bytes_of(*hello))->host == hello->host);
    if (const auto welcome = read_welcome(bytes)) require(bytes_of(*welcome) == bytes);
    if (const auto words = read_last_words(bytes)) require(read_last_words(bytes_of(*words))->text == words->text);
    if (const auto lengths = read_lengths(bytes)) require(bytes_of(*lengths) == bytes);
    return 0;
}
