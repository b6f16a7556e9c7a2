#include "philox.h"
#include "tile.h"

#if PNDM_MULTIVERSION
#pragma GCC target("arch=x86-64-v4")
#define PNDM_NAMESPACE v4
#include "tile_loops.h"
#endif
