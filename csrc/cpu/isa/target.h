// The pragmas that compile functions for instructions which the compiler does not use by default.
//
// RNNFAST_TARGET("avx2,fma") begins such a part of a file, and RNNFAST_END_TARGET is the last line
// of the file. No header may be included between the two, except those that end in -inl.h. The
// linker keeps one copy of an inline function, and if that copy used these instructions, CPUs
// without them would crash.
#pragma once

#define RNNFAST_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define RNNFAST_TARGET(features)                                                                   \
  RNNFAST_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define RNNFAST_END_TARGET RNNFAST_PRAGMA(clang attribute pop)
#else
// GCC compiles the templates at the end of the file, so the target has to last until then.
#define RNNFAST_TARGET(features) RNNFAST_PRAGMA(GCC target(features))
#define RNNFAST_END_TARGET
#endif
