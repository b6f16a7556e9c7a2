#include "row/philox.h"
#include "row/tile.h"

#if PNDM_MULTIVERSION
#pragma GCC target("arch=x86-64-v4")
#define PNDM_NAMESPACE v4
#include "row/tile_loops.h"
#endif
