#!/usr/bin/env bash
# Guess:     While a library multiplies matrices, the stack pointer points into the thread's stack. So a signal handler
#            finds room below it, as the ABI promises.
# Version:   oneDNN 3.2 (onednn-cpu-gomp 2023.2.0 of PyPI), dnnl_sgemm, AVX2 kernels. Debian 12's 2.6.3 does the same.
# Behaviour: For sums of 256 products and more the kernel points the stack pointer into a buffer that it has taken from
#            the heap, most of the time. A handler without a stack of its own would write over whatever lies below that
#            buffer. For shorter sums the pointer stays in the stack.
# Why it matters: Trainers save on SIGTERM, and profilers sample with SIGPROF. Handlers need sigaltstack and SA_ONSTACK,
#            or the threads that compute must block signals; signalfd and sigwait are safe.
#
# Installs into a temporary folder (python3 with venv, and cc, must be there), prints what it sees, and exits with 1 if
# that is not what stands above. Its own handler has its own stack, so nothing is overwritten.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check onednn-cpu-gomp==2023.2.0
library=$(find "$folder/venv" -name 'libdnnl.so.3' | head -n 1)

cat > "$folder/sample.c" << 'C'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <ucontext.h>

static uintptr_t low, high;  // of this thread's stack
static volatile sig_atomic_t inside, outside;

static void sample(int signal, siginfo_t* info, void* context) {
    (void)signal, (void)info;
    const uintptr_t pointer = (uintptr_t)((ucontext_t*)context)->uc_mcontext.gregs[REG_RSP];
    if (pointer >= low && pointer < high) inside++;
    else outside++;
}

int main(int argc, char** argv) {
    int (*sgemm)(char, char, int64_t, int64_t, int64_t, float, const float*, int64_t, const float*, int64_t, float,
                 float*, int64_t);
    void* library = argc > 1 ? dlopen(argv[1], RTLD_NOW) : NULL;
    if (!library) return fprintf(stderr, "%s\n", dlerror()), 2;
    *(void**)&sgemm = dlsym(library, "dnnl_sgemm");

    pthread_attr_t attributes;
    void* base;
    size_t size;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &base, &size);
    low = (uintptr_t)base, high = low + size;

    const stack_t own = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
    sigaltstack(&own, NULL);
    const struct sigaction action = {.sa_sigaction = sample, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
    sigaction(SIGPROF, &action, NULL);
    const struct itimerval every_millisecond = {{0, 1000}, {0, 1000}};

    enum { n = 512 };
    float *a = calloc(n * n, sizeof *a), *b = calloc(n * n, sizeof *b), *c = calloc(n * n, sizeof *c);
    int as_described = 1;
    for (int64_t k = 128; k <= n; k *= 2) {
        inside = outside = 0;
        setitimer(ITIMER_PROF, &every_millisecond, NULL);
        while (inside + outside < 200) sgemm('N', 'N', n, n, k, 1, a, k, b, n, 0, c, n);
        setitimer(ITIMER_PROF, &(struct itimerval){0}, NULL);
        printf("sums of %3d products: stack pointer in the stack in %3d of %d samples\n", (int)k, (int)inside,
               (int)(inside + outside));
        as_described &= k < 256 ? outside == 0 : outside > inside;
    }
    return !as_described;
}
C
cc -O1 -o "$folder/sample" "$folder/sample.c" -ldl -lpthread
LD_LIBRARY_PATH=$(dirname "$library") ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1 "$folder/sample" "$library"
