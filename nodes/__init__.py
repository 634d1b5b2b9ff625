"""The ComfyUI nodes. Their ids are in users' workflows: never rename one."""

from __future__ import annotations

from ..trust_engine import errors
from . import demo, folders, routes
from .audit import TrustAudit
from .compare import TrustCompare
from .concept import TrustConcept
from .demo import TrustDemoModel
from .diffs import TrustApplyDiff, TrustLoadDiff, TrustMergeDiffs
from .find import TrustFindNeurons
from .saving import TrustExportLora, TrustSaveDiff
from .settings import TrustUnlearnSettings
from .unlearn import TrustUnlearn
from .wording import worded

NODE_CLASS_MAPPINGS: dict[str, type] = {
    "TrustDemoModel": TrustDemoModel,
    "TrustConcept": TrustConcept,
    "TrustFindNeurons": TrustFindNeurons,
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
