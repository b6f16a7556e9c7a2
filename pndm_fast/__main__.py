"""`python -m pndm_fast`."""

from pndm_fast.cli.app import main

main()
