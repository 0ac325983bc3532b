"""The endpoint's keys. Container Instances never returns a secure variable, so they are kept in a vault or a file."""

from __future__ import annotations

from pathlib import Path

from ml_service.azure.key_vault import VaultKeys
from ml_service.common import keys as key_file
from ml_service.config import Settings
from ml_service.errors import UnavailableError
from ml_service.ports import Keys


class AciKeys:
    """The two keys in the key vault of the settings; without one, in a file below MLOPS_HOME."""

    def __init__(self, settings: Settings, file: Path) -> None:
        self._settings = settings
        self._file = file
        self.vault = VaultKeys(settings, settings.aci.name) if settings.azure.keys_vault else None

    def make_file(self, *, is_deployed: bool) -> None:
        """Generate the keys of a first deployment, where no vault has them.

        Raises:
            UnavailableError: a version is deployed, and its keys are on another machine.
        """
        if self.vault:
            return
        if is_deployed and not self._file.exists():
            raise _keys_elsewhere()
        key_file.make(self._file)

    def read(self) -> Keys:
        """Return the two keys.

        Raises:
            UnavailableError: they are on another machine.
            IntegrityError: the vault or the file does not hold both.
        """
        if self.vault:
            return self.vault.read()
        if not self._file.exists():
            raise _keys_elsewhere()
        return key_file.read(self._file, "run: inv undeploy --target aci, then deploy again")

    def version(self) -> str:
        """Return a text that changes with the keys, and reveals nothing of them."""
        return f"{self._settings.azure.keys_vault} {self.vault.version()}" if self.vault else "in MLOPS_HOME"

    def forget_file(self) -> None:
        """Remove the file. A vault keeps its secrets: the name of a deleted one stays taken."""
        self._file.unlink(missing_ok=True)


def _keys_elsewhere() -> UnavailableError:
    return UnavailableError(
        "the keys of this deployment are in the MLOPS_HOME of another machine, and Azure gives none back",
        where="target aci",
        next_step="use that machine; or set SCORING_KEYS_VAULT, undeploy, and deploy afresh",
    )
