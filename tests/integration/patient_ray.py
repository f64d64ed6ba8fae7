"""The program `ray`, but a node that it starts may take longer than half a minute to come up."""

from __future__ import annotations

from ray._private import services
from ray.scripts.scripts import main

from emoreg.tuning.ray_head import patient

if __name__ == "__main__":
    services.get_node = patient(services.get_node)
    main()
