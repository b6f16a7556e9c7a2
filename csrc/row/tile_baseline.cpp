#include "row/philox.h"
#include "row/tile.h"

#define PNDM_NAMESPACE baseline
#include "row/tile_loops.h"
