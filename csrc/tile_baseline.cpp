#include "philox.h"
#include "tile.h"

#define PNDM_NAMESPACE baseline
#include "tile_loops.h"
