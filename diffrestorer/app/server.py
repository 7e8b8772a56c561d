"""Serve the page: to this machine only unless told, nothing from outside its own folder, nothing to anybody else.

Fonts and scripts come from this server and no statistics are sent, so that it works without a network. Photos and
results live in a temporary folder, the only one that files are given from; it is removed when the server ends.
"""

import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LONGEST_QUEUE = 16
"""Visitors that wait; a further one is told to come again."""

_CSS = """
.gradio-container { max-width: 1180px !important; margin: auto !important; }
footer { display: none !important; }
/* Gradio nests a file input in this button, which screen readers cannot reach: clear the list to drop other photos. */
#photo button[aria-label="common.upload"] { display: none !important; }
/* Room for the answer and for a photo as high as wide, so that nothing jumps when they come. */
#degradations { min-height: calc(47px + 37px * NUM_CLASSES); }
#compare { min-height: min(660px, 100vw - 64px); }
"""


def serve(
    load: Callable[[], Any],
    host: str,
    port: int,
    on_start: Callable[[str], object],
    names: Sequence[str] = (),
) -> None:
    """Serve the page until `KeyboardInterrupt`.

    Args:
        load: returns a DiffRestorerPipeline on its device.
        host: address to listen on.
        port: to listen on.
        on_start: told the page's address.
        names: further host names by which browsers may ask for the page, as behind a proxy.

    Raises:
        ImportError: Gradio is not installed; nothing has been loaded.
        ValueError: the port is taken, or this machine has no such host; nothing has been loaded.
    """
    with tempfile.TemporaryDirectory(prefix="diffrestorer-") as folder:
        # Gradio reads these when it is imported.
        os.environ |= {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_TEMP_DIR": folder,
            "GRADIO_EXAMPLES_CACHE": str(Path(folder, "examples")),
        }
        from uvicorn import Config, Server

        from diffrestorer.app.page import build_page
        from diffrestorer.app.visitors import Visitors

        with _listen(host, port) as listener:
            visitors = Visitors()
            pipe = load()
            page = build_page(pipe, Path(folder), visitors).queue(
                max_size=LONGEST_QUEUE, api_open=False
            )
            application = _guard(
                page,
                len(pipe.classes),
                {"localhost", host, socket.gethostname(), *names},
                Path(folder),
                visitors,
            )
            server = Server(Config(application, log_level="warning", timeout_graceful_shutdown=1))
            on_start(f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/")
            try:
                server.run(sockets=[listener])
            finally:
                page.close(verbose=False)


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens."""
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise ValueError(
            f"can't listen on {host}, port {port}; choose another with --host or --port"
        ) from error


def _guard(page: Any, num_classes: int, hosts: set[str], folder: Path, visitors: Any) -> Any:
    """Return the page as an ASGI application behind its guard."""
    from diffrestorer.app.guard import Guard

    async def drop(session: str) -> None:
        await page._queue.clean_events(session_hash=session)

    return Guard(
        _application(page, num_classes),
        hosts,
        folder,
        visitors,
        drop,
        lambda: len(page._queue) >= LONGEST_QUEUE,
    )


def _application(page: Any, num_classes: int) -> Any:
    """Return the page as an ASGI application: its own `launch` fails where a proxy keeps it from visiting itself."""
    from fastapi import FastAPI
    from gradio import mount_gradio_app

    from diffrestorer.app.page import LARGEST_UPLOAD

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
        theme=_theme(),
        css=_CSS.replace("NUM_CLASSES", str(num_classes)),
    )
    # As `launch` does: without these, Gradio takes any file of this machine that a visitor names.
    page.has_launched = page.is_running = True
    return application


def _theme() -> Any:
    """Return the looks of the page: system fonts, and text that stands out from its ground by 4.5:1 or more."""
    from gradio.themes import Soft

    theme = Soft(font=["ui-sans-serif", "system-ui", "sans-serif"], font_mono=["monospace"])
    return theme.set(
        checkbox_label_background_fill_selected="*primary_700",
        checkbox_label_background_fill_selected_dark="*primary_700",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_200",
        link_text_color_active="*primary_800",
        link_text_color_active_dark="*primary_100",
        link_text_color_hover="*primary_800",
        link_text_color_hover_dark="*primary_100",
        link_text_color_visited="*primary_700",
        link_text_color_visited_dark="*primary_200",
        block_label_text_color="*primary_800",
        block_label_text_color_dark="*primary_100",
        block_title_text_color="*primary_800",
        block_title_text_color_dark="*primary_100",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
    )
