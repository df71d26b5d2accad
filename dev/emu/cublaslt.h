// What cublaslt.cpp (the library's functions and all checks) asks of cublaslt_product.cpp (the arithmetic).
#pragma once
#include <cublasLt.h>

#include <cstdint>

namespace emu {

// A matrix, or a batch of them, in columns: element (i, j) of number b at b * stride + j * ld + i.
struct Matrix {
    cudaDataType type = CUDA_R_32F;
    int64_t rows = 0, columns = 0, ld = 0;
    int64_t batch = 1, stride = 0;
    char* data = nullptr;

    int64_t element_size() const { return type == CUDA_R_16BF ? 2 : 4; }
    int64_t bytes() const { return ((batch - 1) * stride + (columns - 1) * ld + rows) * element_size(); }
};

// d = epilogue(alpha op(a) op(b) + beta c + bias), everything checked.
struct Product {
    Matrix a, b, c, d, aux;
    bool transpose_a = false, transpose_b = false;
    float alpha = 1, beta = 0;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    Matrix bias;  // one column

    int64_t m() const { return d.rows; }
    int64_t n() const { return d.columns; }
    int64_t k() const { return transpose_a ? a.rows : a.columns; }
};

void multiply(const Product& p);

}  // namespace emu
