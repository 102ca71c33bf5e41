"""What the stand-in supervisor's forkserver imports, as the real one's imports `tasuki_mp.child.preload`."""

from tasuki_mp.child.guard import shield_forkserver

shield_forkserver()
