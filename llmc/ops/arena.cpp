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
    return Tensor(take(shape.numel() * size_of(dtype), tensor_name, shape), dtype, shape, tensor_name);
}

void* Arena::take(int64_t bytes, const char* tensor_name, Shape shape) {
    bytes = (bytes + alignment - 1) / alignment * alignment;
    if (base && used + bytes > size)
        run_error("arena ", name, " is full: ", tensor_name, " ", shape.text(), " needs ", bytes, " bytes, ",
                  size - used, " are left");
    char* taken = (base ? base : fake_base) + used;
    used += bytes;
    most = std::max(most, used);
    return taken;
}

void Arena::allocate(int64_t bytes) {
    if (base || used) run_error("arena ", name, " is in use already");
    most = 0;
    if (bytes == 0 || ctx.counting) return;
    base = static_cast<char*>(device_alloc(bytes, ctx));
    size = bytes;
}

}  // namespace llmc
