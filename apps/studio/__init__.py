"""The studio: Gradio's interface of jobs and runs, and the 3D view.

The form is Gradio's; what follows jobs, shows Gaussians, lists runs and turns comparisons is JavaScript of our own
(`static/`), which asks the API of `dreamkit_apps.api`. Nothing runs in a handler but a short look at the queue, so a
closed tab leaves nothing behind. Importing this package loads gradio.
"""

from dreamkit_apps.studio.mount import mount_studio
from dreamkit_apps.studio.page import make_studio

__all__ = ["make_studio", "mount_studio"]
