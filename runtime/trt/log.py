"""What TensorRT complains about, kept for the error that follows."""

from typing import Any


def logger(trt: Any) -> Any:
    """A logger for a flavour of TensorRT, with the lines in `errors` and the last by `complaint`.

    Args:
        trt: the module of the flavour.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps what is wrong; the rest is not shown."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR and "CUDA driver" not in message:
                self.errors.append(message)

        def complaint(self, otherwise: str = "it does not say why") -> str:
            return self.errors[-1].strip().rstrip(".") if self.errors else otherwise

    return Logger()
