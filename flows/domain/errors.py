"""Every error that ends a command, as one tree.

    ModelServeError
    ├── SpecInvalid            model.yaml breaks a rule; names file, key and what is allowed
    ├── ReleaseUnknown         no such model or version in the registry
    ├── ReleaseExists          this version is registered with other content
    ├── ArtifactCorrupt        missing file, or its sha256 differs from the registered one
    ├── PackagesRefused        a model's packages cannot be locked or installed
    ├── ImageFailed            the image could not be built
    ├── ScanRefused            the scan policy says no, or its scanner could not run
    ├── ScanImpossible         the policy requires a vulnerability database and there is none
    ├── ReleaseUnproven        it has never been stable: nobody is sent to it by a rollback
    ├── ReleaseNotReady        a server never became ready
    ├── VerificationFailed     an integration sample was answered outside its tolerance
    ├── PromotionRunning       this model is being promoted already
    ├── PromotionLost          someone else (rollback, sweep, abort) took the turn; stop quietly
    ├── PromotionRejected      the judge rejected the canary; traffic went back
    ├── PromotionUnproven      the deadline came without proof; traffic went back, nothing is held against it
    │   └── PromotionKept      … and the traffic stays as it is
    ├── ApprovalExpired        nobody approved the next step before the deadline; traffic went back
    ├── RouteConflict          somebody else changed the route; it was left as it is
    ├── EvidenceInvalid        a count or a time that cannot be true (in `flows.domain.judge.windows`)
    ├── DependencyDown         a system that we need does not answer; carries its name
    └── PortTaken              a port of the local stack is in use by somebody else

A message is one line, says what happened and what to do next, and needs no traceback to be understood.
"""


class ModelServeError(Exception):
    """Base of every error whose message is meant for the user."""


class SpecInvalid(ModelServeError): ...


class ReleaseUnknown(ModelServeError): ...


class ReleaseExists(ModelServeError): ...


class ArtifactCorrupt(ModelServeError): ...


class PackagesRefused(ModelServeError): ...


class ImageFailed(ModelServeError): ...


class ScanRefused(ModelServeError): ...


class ScanImpossible(ModelServeError): ...


class ReleaseUnproven(ModelServeError): ...


class ReleaseNotReady(ModelServeError): ...


class VerificationFailed(ModelServeError): ...


class PromotionRunning(ModelServeError): ...


class PromotionLost(ModelServeError): ...


class PromotionRejected(ModelServeError): ...


class PromotionUnproven(ModelServeError): ...


class PromotionKept(PromotionUnproven): ...


class ApprovalExpired(ModelServeError): ...


class RouteConflict(ModelServeError): ...


class DependencyDown(ModelServeError): ...


class PortTaken(ModelServeError): ...
