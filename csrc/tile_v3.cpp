#include "philox.h"
#include "tile.h"

#if PNDM_MULTIVERSION
#pragma GCC target("arch=x86-64-v3")
#define PNDM_NAMESPACE v3
#include "tile_loops.h"
#endif
