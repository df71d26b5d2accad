// Device memory: what is the same on every device. Fake addresses while counting, checks, messages.
#include <cstring>

#include "llmc/ops/backend.h"
#include "llmc/ops/checks/common.h"

namespace llmc {

namespace {

// Fake addresses of a counting Context: above all addresses of a process, and never dereferenced.
const uintptr_t fake_base = uintptr_t(1) << 56;
bool is_fake(const void* data) { return reinterpret_cast<uintptr_t>(data) >= fake_base; }

void check_contiguous(const Tensor& t, const char* op) {
    if (!t.contiguous()) run_error(op, ": ", t.name, " must be contiguous");
}

}  // namespace

void* device_alloc(int64_t bytes, Context& ctx) {
    if (bytes < 0) run_error("device_alloc: ", bytes, " bytes; a size overflowed");
    const int64_t at_least_one = std::max<int64_t>(bytes, 1);
    if (ctx.counting) {
        void* data = reinterpret_cast<void*>(fake_base + uintptr_t(ctx.counted_bytes));
        ctx.counted_bytes += round_up(at_least_one, 256);
        return data;
    }
    void* data = backend_alloc(at_least_one, ctx);
    if (!data)
        run_error("out of memory: needs ", bytes, " bytes, available ", device_memory_available(ctx), " bytes");
    return data;
}

void device_free(void* data, int64_t bytes, Context& ctx) {
    if (data && !is_fake(data)) backend_free(data, std::max<int64_t>(bytes, 1), ctx);
}

void upload(Tensor dst, const void* host, Context& ctx) {
    check_contiguous(dst, "upload");
    Op op(ctx, "upload", 0, 0, dst.bytes());
    if (op.run && dst.bytes() > 0) backend_upload(dst, host, ctx);
}

// While counting, the host gets zeros.
void download(void* host, Tensor src, Context& ctx) {
    check_contiguous(src, "download");
    Op op(ctx, "download", 0, 0, src.bytes());
    if (src.bytes() == 0) return;
    if (op.run) backend_download(host, src, ctx);
    else std::memset(host, 0, size_t(src.bytes()));
}

void fill(Tensor t, double value, Context& ctx) {
    check_contiguous(t, "fill");
    Op op(ctx, "fill", 0, 0, t.bytes());
    if (op.run && t.numel() > 0) backend_fill(t, value, ctx);
}

void copy(Tensor dst, Tensor src, Context& ctx) {
    check_contiguous(dst, "copy");
    check_contiguous(src, "copy");
    if (dst.numel() != src.numel())
        run_error("copy: ", dst.name, " has shape ", dst.shape.text(), ", ", src.name, " has ", src.shape.text());
    if ((dst.dtype == DType::i32) != (src.dtype == DType::i32))
        run_error("copy: ", dst.name, " is ", name_of(dst.dtype), ", ", src.name, " is ", name_of(src.dtype));
    Op op(ctx, "copy", 0, 0, total_bytes({dst, src}));
    if (op.run && dst.numel() > 0) backend_copy(dst, src, ctx);
}

void swap_axes(Tensor out, Tensor in, Context& ctx) {
    if (in.shape.rank != 3) run_error("swap_axes: ", in.name, " has shape ", in.shape.text(), ", expected three axes");
    check_contiguous(in, "swap_axes");
    check(out, in.dtype, {in.shape[1], in.shape[0], in.shape[2]}, "swap_axes");
    Op op(ctx, "swap_axes", 0, 0, total_bytes({out, in}));
    if (op.run && in.numel() > 0) backend_swap_axes(out, in, ctx);
}

}  // namespace llmc
