"""The ComfyUI nodes. Their ids are in users' workflows: never rename one.

Nodes:
unlearn        TRUST Unlearn
settings       TRUST Unlearn Settings
concept        TRUST Concept
find_neurons   TRUST Find Neurons
prompts        TRUST Prompts
audit          TRUST Audit
compare        TRUST Compare
diffs          TRUST Load Diff, Apply Diff, Merge Diffs
saving         TRUST Save Diff, Export LoRA
demo           TRUST Demo Model

How they are made:
declaring      the decorator `node`, outputs, checks
inputs         inputs, each with its tooltip
sockets        names of the sockets
wording        the engine's errors in the nodes' words
file_names     names of new files
folders        where diffs and exports lie

The host's objects for the engine:
lending        a MODEL and a CLIP as the engine's LentModel
host           the UNet, called the host's own way
weights        the UNet's weights as the host computes with them
stored_weight  what the host knows of one weight
private_unet   a copy of the UNet that gradients pass
text_encoder   the CLIP as a text encoder
token_space    the CLIP below its words
syntax         prompts as they are spelled
patching       a diff put on a clone of a MODEL
changes        two MODELs' difference as a diff

While and after a node works:
host_run       one run of the engine under the host's progress bar
progress       progress, interrupt, out of memory
estimate       time and memory, told before it starts
before_after   test pictures without and with a diff
drawing        the engine's sampler, the host's VAE; heat maps
charts         pictures for the node and for IMAGE
runs           where stopped and finished runs are kept, and clearing them
run_cache      what finished runs showed, for a page that is reloaded
routes         what the browser asks the server
"""

from __future__ import annotations

from ..trust_engine import errors
from . import demo, folders, routes
from .audit import TrustAudit
from .compare import TrustCompare
from .concept import TrustConcept
from .demo import TrustDemoModel
from .diffs import TrustApplyDiff, TrustLoadDiff, TrustMergeDiffs
from .find_neurons import TrustFindNeurons
from .prompts import TrustPrompts
from .saving import TrustExportLora, TrustSaveDiff
from .settings import TrustUnlearnSettings
from .unlearn import TrustUnlearn
from .wording import worded

NODE_CLASS_MAPPINGS: dict[str, type] = {
    "TrustDemoModel": TrustDemoModel,
    "TrustConcept": TrustConcept,
    "TrustFindNeurons": TrustFindNeurons,
    "TrustPrompts": TrustPrompts,
    "TrustUnlearn": TrustUnlearn,
    "TrustUnlearnSettings": TrustUnlearnSettings,
    "TrustSaveDiff": TrustSaveDiff,
    "TrustLoadDiff": TrustLoadDiff,
    "TrustApplyDiff": TrustApplyDiff,
    "TrustMergeDiffs": TrustMergeDiffs,
    "TrustExportLora": TrustExportLora,
    "TrustCompare": TrustCompare,
    "TrustAudit": TrustAudit,
}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {
    "TrustDemoModel": "TRUST Demo Model",
    "TrustConcept": "TRUST Concept",
    "TrustFindNeurons": "TRUST Find Neurons",
    "TrustPrompts": "TRUST Prompts",
    "TrustUnlearn": "TRUST Unlearn",
    "TrustUnlearnSettings": "TRUST Unlearn Settings",
    "TrustSaveDiff": "TRUST Save Diff",
    "TrustLoadDiff": "TRUST Load Diff",
    "TrustApplyDiff": "TRUST Apply Diff",
    "TrustMergeDiffs": "TRUST Merge Diffs",
    "TrustExportLora": "TRUST Export LoRA",
    "TrustCompare": "TRUST Compare",
    "TrustAudit": "TRUST Audit",
}

for _node in NODE_CLASS_MAPPINGS.values():
    setattr(_node, _node.FUNCTION, worded(getattr(_node, _node.FUNCTION)))  # type: ignore[attr-defined]
# The host shows a kind of error by its module's name, which is a long path for a pack of nodes.
for _kind in list(vars(errors).values()):
    if isinstance(_kind, type) and issubclass(_kind, errors.TrustError):
        _kind.__module__ = "TRUST"
folders.register()
demo.register()
routes.register()
