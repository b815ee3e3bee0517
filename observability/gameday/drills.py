"""What is drilled: every alert, brought about by something that really happens, or by a simulated exporter where that
would take hardware, containers or a full disk.
"""

from observability.gameday.causes import traffic
from observability.gameday.engine_drills import ENGINE
from observability.gameday.fleet_drills import FLEET
from observability.gameday.request_drills import INFORMATION, OBJECTIVES, REQUESTS, TICKETS
from observability.gameday.simulated_drills import SIMULATED
from observability.gameday.stack_drills import STACK
from observability.gameday.traffic import easy

DRILLS = (TICKETS, *SIMULATED, *STACK, *INFORMATION, *ENGINE, *REQUESTS, *OBJECTIVES, *FLEET)
RECOVERY = traffic(40, easy)
