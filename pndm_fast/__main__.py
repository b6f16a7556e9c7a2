"""`python -m pndm_fast`."""

from pndm_fast.cli import main

main()
