"""What others would serve the same model with: LitServe with its batching, and FastAPI around transformers' pipeline.

python benchmarks/serving_peers.py litserve BUNDLE PORT
"""

from __future__ import annotations

import sys
from typing import Any


def main() -> None:
    """Serve until killed."""
    name, folder, port = sys.argv[1:]
    {"litserve": _litserve, "fastapi": _fastapi}[name](folder, int(port))


def _pipeline(folder: str) -> Any:
    import torch
    from transformers import pipeline

    return pipeline("text-classification", model=folder, top_k=None, dtype=torch.float32, device="cpu")


def _litserve(folder: str, port: int) -> None:
    import litserve

    class Api(litserve.LitAPI):
        def setup(self, device: str) -> None:
            self.classify = _pipeline(folder)

        def decode_request(self, request: dict[str, Any]) -> str:
            return request["inputs"]

        def predict(self, texts: list[str]) -> list[Any]:
            return self.classify(texts, batch_size=len(texts), truncation=True)

        def encode_response(self, output: Any) -> Any:
            return output

    api = Api(max_batch_size=32, batch_timeout=0.01)
    litserve.LitServer(api, accelerator="cpu", timeout=60).run(port=port, generate_client_file=False, log_level="error")


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
