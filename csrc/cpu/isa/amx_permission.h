// Whether this CPU has AMX, and how a process on Linux asks for it.
#pragma once

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../isa.h"

// Linux lets a process use the tile registers after the process has asked for them; see its
// Documentation/arch/x86/xstate.rst. The permission cannot be given back and makes the frames of
// signals larger, so `enable` asks for it only when AMX is chosen.
constexpr int kSupported = 0x1021, kRequestPermission = 0x1023, kTileData = 18;

static bool available() {
  constexpr unsigned kTile = 1u << 24, kBf16 = 1u << 22, kBoth = kTile | kBf16;
  unsigned a, b, c, d;
  unsigned long features = 0;
  return rnnfast::kAvx512Bf16.available() && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 &&
         (d & kBoth) == kBoth && syscall(SYS_arch_prctl, kSupported, &features) == 0 &&
         (features >> kTileData & 1) != 0;
}

static bool enable() { return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0; }
