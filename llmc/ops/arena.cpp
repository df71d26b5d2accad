#include "llmc/ops/arena.h"

namespace llmc {

namespace {
constexpr int64_t alignment = 256;
char* const fake_base =
    reinterpret_cast<char*>(uintptr_t(1) << 40);  // never dereferenced: only a counting Context sees it
}  // namespace

Arena::~Arena() {
    if (base) device_free(base, size, ctx);
}

Tensor Arena::tensor(const char* tensor_name, DType dtype, Shape shape) {
    int64_t bytes = (shape.numel() * size_of(dtype) + alignment - 1) / alignment * alignment;
    if (base && used + bytes > size)
        run_error("arena ", name, " is full: ", tensor_name, " ", shape.text(), " needs ", bytes, " bytes, ",
                  size - used, " are left");
    Tensor t((base ? base : fake_base) + used, dtype, shape, tensor_name);
    used += bytes;
    if (used > most) most = used;
    return t;
}

void Arena::allocate(int64_t bytes) {
    if (base || used) run_error("arena ", name, " is in use already");
    most = 0;
    if (bytes == 0 || ctx.counting) return;
    base = static_cast<char*>(device_alloc(bytes, ctx));
    size = bytes;
}

}  // namespace llmc
