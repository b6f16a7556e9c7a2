#include "row/philox.h"
#include "row/tile.h"

#if PNDM_MULTIVERSION
#pragma GCC target("arch=x86-64-v3")
#define PNDM_NAMESPACE v3
#include "row/tile_loops.h"
#endif
