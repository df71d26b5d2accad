// Tensor: a view of device memory. It owns nothing, and code above ops/ must not read through `data`.
#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include "llmc/base/dtype.h"
#include "llmc/base/errors.h"

namespace llmc {

// Up to four dimensions, slowest first. Sizes are int64 everywhere: products of dimensions overflow int32.
struct Shape {
    int rank = 0;
    std::array<int64_t, 4> dim{};

    Shape() = default;
    Shape(std::initializer_list<int64_t> dims) {
        if (dims.size() > 4) run_error("a tensor has at most 4 dimensions");
        for (int64_t d : dims) dim[size_t(rank++)] = d;
    }
    int64_t operator[](int i) const { return dim[size_t(i < 0 ? i + rank : i)]; }  // negative: from the end
    // InputError above 2^50, so that bytes, and sums over all tensors of a model, fit into 63 bits.
    int64_t numel() const {
        constexpr int64_t most = int64_t(1) << 50;
        int64_t n = 1;
        for (int i = 0; i < rank; i++)
            if (__builtin_mul_overflow(n, dim[size_t(i)], &n) || n > most)
                input_error("a tensor of shape ", text(), " would have more than 2^50 elements");
        return n;
    }
    bool operator==(const Shape& o) const { return rank == o.rank && dim == o.dim; }
    std::string text() const {  // "[2, 3, 4]"
        std::string s = "[";
        for (int i = 0; i < rank; i++) s += (i ? ", " : "") + std::to_string(dim[size_t(i)]);
        return s + "]";
    }
};

struct Tensor {
    void* data = nullptr;  // device address, valid only inside ops/
    DType dtype = DType::f32;
    Shape shape;
    Shape stride;           // in elements; row-major, except in some views
    const char* name = "";  // for messages; points to storage that outlives the tensor

    Tensor() = default;
    Tensor(void* data, DType dtype, Shape shape, const char* name)
        : data(data), dtype(dtype), shape(shape), stride(row_major(shape)), name(name) {}

    explicit operator bool() const { return data != nullptr; }  // false for an optional tensor that is not given
    int64_t numel() const { return shape.numel(); }
    int64_t bytes() const { return numel() * size_of(dtype); }
    bool contiguous() const { return stride == row_major(shape); }

    // rows x columns when all leading dimensions are folded into one, as a linear layer treats [B, T, C].
    int64_t columns() const { return shape[-1]; }
    int64_t rows() const { return columns() ? numel() / columns() : 0; }

    // The same contiguous memory with another shape of equal size; RunError otherwise.
    Tensor view(Shape s) const {
        if (!contiguous() || s.numel() != numel())
            run_error("tensor ", name, " ", shape.text(), " cannot be viewed as ", s.text());
        return Tensor(data, dtype, s, name);
    }
    // Elements [begin, end) of the first dimension; RunError if there are none.
    Tensor slice(int64_t begin, int64_t end) const {
        if (begin < 0 || end < begin || end > shape[0])
            run_error("tensor ", name, " ", shape.text(), " has no slice ", begin, ":", end);
        Tensor t = *this;
        t.data = static_cast<char*>(data) + begin * stride[0] * size_of(dtype);
        t.shape.dim[0] = end - begin;
        return t;
    }

    // The strides of a contiguous tensor of this shape.
    static Shape row_major(Shape s) {
        Shape st = s;
        int64_t n = 1;
        for (int i = s.rank - 1; i >= 0; i--) st.dim[size_t(i)] = n, n *= s.dim[size_t(i)];
        return st;
    }
};

// A tensor with its name in files. If the tensor is divided over ranks, `tensor` is the part in this rank's memory, 1-D
// and maybe empty: the elements from number `first` on of a tensor of shape `whole`.
struct NamedTensor {
    std::string name;
    Tensor tensor;
    std::optional<Shape> whole{};
    int64_t first = 0;
    const Shape& shape() const { return whole ? *whole : tensor.shape; }
};

}  // namespace llmc
