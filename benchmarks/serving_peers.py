"""What others would serve the same model with: LitServe with its batching, and FastAPI around transformers' pipeline.

python benchmarks/serving_peers.py litserve BUNDLE PORT
"""

import sys
from typing import Any

import litserve
from fastapi import Request


def main() -> None:
    """Serve until killed."""
    name, folder, port = sys.argv[1:]
    {"litserve": _litserve, "fastapi": _fastapi}[name](folder, int(port))


def _pipeline(folder: str) -> Any:
    import torch
    from transformers import pipeline

    return pipeline("text-classification", model=folder, top_k=None, dtype=torch.float32, device="cpu")


class Api(litserve.LitAPI):
    """The pipeline behind LitServe. It stands here because its process is handed the class by pickle."""

    def __init__(self, folder: str) -> None:
        super().__init__(max_batch_size=32, batch_timeout=0.01)
        self.folder = folder

    def setup(self, device: str) -> None:
        """Load the model, in LitServe's own process for it."""
        self.classify = _pipeline(self.folder)

    def decode_request(self, request: Request) -> str:
        """The text of a request."""
        return request["inputs"]

    def predict(self, texts: list[str]) -> list[Any]:
        """The answers to a batch."""
        return self.classify(texts, batch_size=len(texts), truncation=True)

    def encode_response(self, output: Any) -> Any:
        """The body of an answer."""
        return output


def _litserve(folder: str, port: int) -> None:
    server = litserve.LitServer(Api(folder), accelerator="cpu", timeout=60)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")


def _fastapi(folder: str, port: int) -> None:
    import uvicorn
    from fastapi import Body, FastAPI

    app, classify = FastAPI(), _pipeline(folder)

    @app.post("/predict")
    def predict(inputs: str = Body(embed=True)) -> Any:
        return classify(inputs, truncation=True)

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


if __name__ == "__main__":
    main()
