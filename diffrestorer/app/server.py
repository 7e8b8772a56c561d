"""Serves the page: to this machine only unless told, nothing from outside its own folder, nothing to anybody else.

Fonts and scripts come from this server and no statistics are sent, so that it works without a network. Photos and
results live in a temporary folder, the only one that files are given from; it is removed when the server ends.
"""

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

LARGEST_UPLOAD = 64 * 2**20  # bytes
LONGEST_QUEUE = 16  # visitors that wait; a further one is told to come again

_CSS = """
.gradio-container { max-width: 1180px !important; margin: auto !important; }
footer { display: none !important; }
"""


def serve(load: Callable[[], Any], host: str, port: int, on_start: Callable[[str], object]) -> None:
    """Serves the page until `KeyboardInterrupt`.

    Args:
        load: returns a DiffRestorerPipeline on its device.
        host, port: to listen on.
        on_start: told the page's address.

    Raises:
        ImportError: Gradio is not installed; nothing has been loaded.
        ValueError: the port is taken, or this machine has no such host; nothing has been loaded.
    """
    with tempfile.TemporaryDirectory(prefix="diffrestorer-") as folder:
        os.environ |= {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_TEMP_DIR": folder,
            "GRADIO_EXAMPLES_CACHE": str(Path(folder, "examples")),
        }
        from uvicorn import Config, Server

        from diffrestorer.app.page import build_page  # Gradio makes its folder when it is imported

        with _listen(host, port) as listener:
            page = build_page(load(), Path(folder)).queue(max_size=LONGEST_QUEUE, api_open=False)
            server = Server(Config(_application(page), log_level="warning", timeout_graceful_shutdown=1))
            on_start(f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/")
            try:
                server.run(sockets=[listener])
            finally:
                page.close(verbose=False)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ValueError(f"can't listen on {host}, port {port}; choose another with --host or --port") from error


def _application(page: Any) -> Any:
    """The page as an ASGI application. (Its own `launch` gives up where a proxy keeps it from visiting itself.)"""
    from fastapi import FastAPI
    from gradio import mount_gradio_app
    from gradio.themes import Soft

    application = mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        max_file_size=LARGEST_UPLOAD,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        theme=Soft(font=["ui-sans-serif", "system-ui", "sans-serif"], font_mono=["monospace"]),
        css=_CSS,
    )
    # As `launch` does: without these, Gradio takes any file of this machine that a visitor names.
    page.has_launched = page.is_running = True
    return application
